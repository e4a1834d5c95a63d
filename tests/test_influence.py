"""Influence statistics: Table 8's columns and the sums of Thm 3.1."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from fl_darex.activations import LayerInputs, layer_inputs
from fl_darex.analysis import delta_magnitude, influence, magnitudes
from fl_darex.analysis.influence import Magnitude, row_sums
from fl_darex.delta import Delta


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.second = torch.nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def delta_of(net, scale=0.01):
    generator = torch.Generator().manual_seed(1)
    base = {k: v.detach().clone() for k, v in net.state_dict().items()}
    tuned = {k: v + scale * torch.randn(v.shape, generator=generator) for k, v in base.items()}
    return Delta(tuned, base), {k: (tuned[k] - base[k]).double().numpy() for k in base}


def tokens_of(net):
    torch.manual_seed(2)
    x = torch.randn(4, 7, 6) + 0.3
    return x, layer_inputs(net, [{"x": x[:1]}, {"x": x[1:]}])


def test_statistics_of_each_token_are_those_of_all_products(net):
    delta, change = delta_of(net)
    x, inputs = tokens_of(net)
    found = influence(delta, inputs)
    assert set(found) == {"first.weight", "second.weight"}
    rows = x.reshape(-1, 6).double().numpy()
    c = change["first.weight"][None] * rows[:, None, :]  # tokens x outputs x inputs
    layer, bias = found["first.weight"], change["first.bias"]
    assert layer.delta.mean == pytest.approx(np.abs(change["first.weight"]).mean())
    assert layer.delta.variance == pytest.approx(np.abs(change["first.weight"]).var())
    assert layer.influence.mean == pytest.approx(np.abs(c).mean())
    assert layer.influence.variance == pytest.approx(np.abs(c).var())
    np.testing.assert_allclose(layer.first, c.sum(2).mean(0) + bias, rtol=1e-5)
    np.testing.assert_allclose(layer.second, (c**2).sum(2).mean(0) + bias**2, rtol=1e-5)


def test_statistics_of_the_mean_token_are_those_of_one_x(net):
    delta, change = delta_of(net)
    x, inputs = tokens_of(net)
    layer = influence(delta, inputs, tokens="mean")["first.weight"]
    c = change["first.weight"] * x.reshape(-1, 6).double().numpy().mean(0)
    assert layer.influence.mean == pytest.approx(np.abs(c).mean())
    assert layer.influence.variance == pytest.approx(np.abs(c).var())
    np.testing.assert_allclose(layer.first, c.sum(1) + change["first.bias"], rtol=1e-5)
    np.testing.assert_allclose(layer.second, (c**2).sum(1) + change["first.bias"] ** 2, rtol=1e-5)


def test_the_row_of_table_8_weighs_layers_by_their_entries(net):
    delta, change = delta_of(net)
    weights, products = magnitudes(influence(delta, tokens_of(net)[1]))
    entries = np.concatenate([change[f"{n}.weight"].reshape(-1) for n in ("first", "second")])
    assert weights.count == products.count == 45
    assert weights.mean == pytest.approx(np.abs(entries).mean())
    assert weights.variance == pytest.approx(np.abs(entries).var())


def test_a_bias_that_is_sent_whole_is_not_dropped_and_does_not_count(net):
    delta, change = delta_of(net)
    whole = Delta(delta._tuned, delta._base, dense=["first.bias"])
    inputs = tokens_of(net)[1]
    difference = influence(delta, inputs)["first.weight"].first
    difference = difference - influence(whole, inputs)["first.weight"].first
    np.testing.assert_allclose(difference, change["first.bias"], rtol=1e-5)


def test_a_layer_that_is_sent_whole_or_not_reached_is_left_out(net):
    delta, _ = delta_of(net)
    inputs = tokens_of(net)[1]
    dense = Delta(delta._tuned, delta._base, dense=["first.weight"])
    assert set(influence(dense, inputs)) == {"second.weight"}
    assert set(influence(delta, {"first.weight": inputs["first.weight"]})) == {"first.weight"}


def test_magnitude_of_a_delta_is_that_of_all_pruned_entries(net):
    delta, change = delta_of(net)
    entries = np.abs(np.concatenate([part.reshape(-1) for part in change.values()]))
    found = delta_magnitude(delta)
    assert found.count == entries.size
    assert found.mean == pytest.approx(entries.mean())
    assert found.variance == pytest.approx(entries.var())


def test_bfloat16_is_measured_without_rounding_the_difference():
    base = torch.full((64, 64), 1.0, dtype=torch.bfloat16)
    tuned = base + torch.tensor(2.0**-7, dtype=torch.bfloat16)
    found = delta_magnitude(Delta({"w": tuned}, {"w": base}))
    assert found == Magnitude(2.0**-7, 0.0, 64 * 64)


def test_pooled_magnitudes_are_those_of_the_union():
    parts = [np.abs(np.random.default_rng(i).normal(size=n)) for i, n in enumerate((5, 1, 40))]
    found = Magnitude.pooled(Magnitude(p.mean(), p.var(), p.size) for p in parts)
    union = np.concatenate(parts)
    assert (found.mean, found.variance) == pytest.approx((union.mean(), union.var()))
    assert Magnitude.pooled([]) == Magnitude(0.0, 0.0, 0)
    assert delta_magnitude({}) == delta_magnitude({"w": np.zeros((0, 3), np.float32)})


def test_sums_of_one_input_and_of_no_rows():
    matrix = np.float32([[1, 2], [3, -4]])
    first, second = row_sums(matrix, np.array([2.0, -1.0]))
    assert first.tolist() == [0, 10] and second.tolist() == [8, 52]
    assert [part.shape for part in row_sums(matrix[:0], np.ones(2))] == [(0,), (0,)]


def test_one_layer_is_in_memory_at_a_time_and_never_in_float64():
    layers, size = 6, 700
    arrays = {f"{i}.weight": np.full((size, size), 1e-3, np.float32) for i in range(layers)}
    ones = LayerInputs(np.ones(size), np.ones(size), np.ones(size), 1)
    tracemalloc.start()
    influence(arrays, dict.fromkeys(arrays, ones))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = size * size * 4
    # A layer as float32, and pieces of 2**18 entries of 8 bytes with their temporaries.
    assert peak < one + 5 * 8 * 2**18 < layers * one + one * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"other.weight": i["first.weight"]}, "none of the layers"),
        (lambda i: {"first.weight": i["second.weight"]}, r"shape \(5, 6\), its inputs 5 entries"),
        (lambda i: {"norm.weight": i["second.weight"]}, r"shape \(5,\), its inputs 5 entries"),
    ],
)
def test_inputs_of_another_model_are_refused(net, change, message):
    with pytest.raises(ValueError, match=message):
        influence(delta_of(net)[0], change(tokens_of(net)[1]))


def test_an_unknown_choice_of_tokens_is_refused(net):
    with pytest.raises(ValueError, match="tokens must be 'each' or 'mean', got 'all'"):
        influence(delta_of(net)[0], tokens_of(net)[1], tokens="all")
