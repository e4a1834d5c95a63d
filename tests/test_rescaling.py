"""A model that moves in place, and what is searched with it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.activations import layer_inputs
from fl_darex.compression import SparseUpdate
from fl_darex.delta import Delta
from fl_darex.positions import ListedMask
from fl_darex.pruning import dare
from fl_darex.rescaling import (
    OutputChange,
    RescaledModel,
    Validation,
    learn_q,
    least_squares_q,
    mse_optimal_q,
    mse_q,
    per_layer_q,
    rescale,
    search_eta,
    search_q,
)
from fl_darex.rescaling.search import Line, refined
from fl_darex.training.exchange import exchanged
from fl_darex.wire.packet import encode, open_packet

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
QS = st.floats(1e-3, 1.0)


class Net(torch.nn.Module):
    """Linear, a tied and a frozen layer, running statistics, a counter and a channels-last conv."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 2)
        self.norm = torch.nn.BatchNorm1d(6)
        self.first = torch.nn.Linear(6, 8)
        self.tied = torch.nn.Linear(8, 8)
        self.again = torch.nn.Linear(8, 8, bias=False)
        self.again.weight = self.tied.weight
        self.frozen = torch.nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.last = torch.nn.Linear(8, 5)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.empty = torch.nn.Parameter(torch.ones(0))

    def forward(self, x, attention_mask=None):
        x = torch.tanh(self.first(self.norm(x.reshape(-1, 6)).reshape(x.shape)))
        x = torch.tanh(self.again(torch.tanh(self.frozen(self.tied(x)))))
        return self.last(x) * self.scale


def net(seed=0, dtype=torch.float32, device="cpu"):
    torch.manual_seed(seed)
    made = Net().to(dtype).to(device)
    made.conv.to(memory_format=torch.channels_last)
    return made.train(False)


def snapshot(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same_bits(left, right):
    def bits(tensor):
        return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist()

    return set(left) == set(right) and all(bits(left[k]) == bits(right[k]) for k in left)


def tune(model, size=0.05, seed=1):
    """Change a model as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in exchanged(model).values():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * size
                tensor += noise.to(tensor.device, tensor.dtype)
            else:
                tensor += 3


def base_and_tuned(p=0.5, dtype=torch.float32, device="cpu", size=0.05):
    """Return a tuned model, its tensors, their base, and survivors of the difference."""
    model = net(dtype=dtype, device=device)
    tensors = exchanged(model)
    base = snapshot(tensors)
    tune(model, size)
    return model, tensors, base, dare(Delta(tensors, base), p, seed=7)


def batches(count=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(4, 5, 6, generator=generator)} for _ in range(count)]


# --- in place ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9, 0.9999])
def test_a_rescaled_model_is_base_plus_survivors_and_restored_bit_for_bit(device, dtype, p):
    _, tensors, base, survivors = base_and_tuned(p, dtype, device)
    tuned = snapshot(tensors)
    for q in (1.0, 0.02, np.linspace(0.1, 0.9, len(survivors.counts), dtype=np.float32)):
        with RescaledModel(tensors, survivors, base) as rescaled:
            rescaled.set(q)
            change = replace(survivors, q=q).rescaled()
            for name, tensor in tensors.items():
                expected = torch.from_numpy(np.asarray(change[name]))
                if tensor.is_floating_point():
                    wide = torch.promote_types(dtype, torch.float32)
                    expected = (base[name].cpu().to(wide) + expected).to(dtype)
                assert torch.equal(tensor.detach().cpu(), expected), name
        assert same_bits(tensors, tuned)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_bits_are_those_of_a_client_that_applies_the_packet(dtype):
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(40, 50)).astype(dtype), "head": rng.normal(size=7).astype(dtype)}
    tuned = {
        name: (value + rng.normal(size=value.shape) * 0.1).astype(dtype)
        for name, value in base.items()
    }
    survivors = rescale(dare(Delta(tuned, base, dense=["head"]), 0.9, seed=1), 0.17)
    data = encode(survivors, "fp32")
    packet = open_packet(data, survivors.layout, survivors.mask, q=0.17, values="fp32")
    tensors = {name: torch.from_numpy(value.copy()) for name, value in base.items()}
    with RescaledModel(tensors, survivors) as rescaled:
        rescaled.set(0.17)
        for name, expected in SparseUpdate.of_packet(packet).values(base).items():
            assert tensors[name].numpy().tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=30)
@given(QS, QS, st.sampled_from(DTYPES))
def test_setting_q_twice_is_setting_the_second_alone(first, second, dtype):
    _, tensors, base, survivors = base_and_tuned(0.5, dtype)
    with RescaledModel(tensors, survivors, base) as rescaled:
        rescaled.set(first)
        rescaled.set(second)
        twice = snapshot(tensors)
    with RescaledModel(tensors, survivors, base) as rescaled:
        rescaled.set(second)
        assert same_bits(tensors, twice)


def test_a_model_at_its_base_needs_no_base_and_keeps_nan_payloads_on_exit():
    model = net(dtype=torch.bfloat16)
    with torch.no_grad():
        model.first.weight.view(torch.int16).fill_(0x7FC1)  # a NaN that rounding would change
    tensors = exchanged(model)
    before = snapshot(tensors)
    survivors = dare(Delta({k: v * 0 + 1 for k, v in tensors.items()}), 0.5, seed=0)
    with RescaledModel(tensors, survivors) as rescaled:
        rescaled.set(0.5)
        assert not same_bits(tensors, before)
    assert same_bits(tensors, before)


def test_only_survivors_are_written_and_frozen_and_tied_tensors_are_right():
    model, tensors, base, survivors = base_and_tuned(0.9)
    assert "frozen.weight" not in tensors and "again.weight" not in tensors
    frozen = snapshot(dict(model.frozen.named_parameters()))
    with RescaledModel(tensors, survivors, base) as rescaled:
        rescaled.set(0.1)
        for spec in survivors.layout.pruned:
            moved = (tensors[spec.name] != base[spec.name]).reshape(-1).nonzero().reshape(-1)
            assert set(moved.tolist()) <= set(survivors.positions[spec.name].tolist())
        assert model.again.weight is model.tied.weight
    assert same_bits(frozen, dict(model.frozen.named_parameters()))
    with RescaledModel(dict(model.state_dict()), survivors, base) as rescaled:
        rescaled.set(0.1)  # more tensors than the layout's are no harm


def test_an_error_inside_the_block_and_one_on_entry_restore_too():
    _, tensors, base, survivors = base_and_tuned()
    tuned = snapshot(tensors)
    with pytest.raises(KeyError), RescaledModel(tensors, survivors, base) as rescaled:
        rescaled.set(0.3)
        raise KeyError
    assert same_bits(tensors, tuned)
    broken = replace(survivors, dense={name: np.zeros(1) for name in survivors.dense})
    with pytest.raises(RuntimeError), RescaledModel(tensors, broken, base):
        pass
    assert same_bits(tensors, tuned)


def test_misuse_of_a_rescaled_model_is_named():
    _, tensors, base, survivors = base_and_tuned()
    rescaled = RescaledModel(tensors, survivors, base)
    with pytest.raises(RuntimeError, match="inside a `with` block"):
        rescaled.set(0.5)
    with rescaled:
        with pytest.raises(RuntimeError, match="in use already"):
            rescaled.__enter__()
        for q in (0.0, -1.0, math.nan, math.inf, 1e-60):
            with pytest.raises(ValueError, match="q must be positive and finite"):
                rescaled.set(q)
        with pytest.raises(ValueError, match="q must be one number or"):
            rescaled.set(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"the model has no tensor 'conv.bias'"):
        RescaledModel({}, survivors)
    with pytest.raises(ValueError, match=r"'scale' has shape \(2,\) in the base, survivors \(\)"):
        RescaledModel(tensors, survivors, base | {"scale": torch.ones(2)})


# --- objectives -------------------------------------------------------------------------------


def test_the_change_of_outputs_is_the_mean_absolute_difference():
    model, tensors, base, survivors = base_and_tuned()
    data = batches()
    with torch.no_grad():
        tuned = [model(**batch) for batch in data]
    objectives = {d: OutputChange(model, data, distance=d) for d in ("absolute", "squared")}
    model.train()
    assert objectives["absolute"]() == 0.0
    assert model.training  # its mode comes back
    model.train(False)
    with RescaledModel(tensors, survivors, base) as rescaled, torch.no_grad():
        rescaled.set(0.4)
        gaps = torch.cat([model(**b) - t for b, t in zip(data, tuned, strict=True)]).double()
        assert objectives["absolute"]() == pytest.approx(float(gaps.abs().mean()), rel=1e-6)
        assert objectives["squared"]() == pytest.approx(float(gaps.square().mean()), rel=1e-6)


def test_padding_labels_and_small_logits_do_not_count():
    model, *_ = base_and_tuned()
    x = torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    batch = {"x": x, "attention_mask": mask, "labels": torch.zeros(2)}
    objective = OutputChange(model, [batch], top=2, distance="squared")
    with torch.no_grad():
        before = model(x)[mask.bool()]
        model.last.bias += torch.arange(5.0)
        gap = (model(x)[mask.bool()] - before).gather(-1, before.topk(2).indices)
    assert objective() == pytest.approx(float(gap.square().mean()), rel=1e-6)


def test_outputs_are_found_by_name_or_by_a_function():
    class Wrapped(torch.nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=x, last_hidden_state=2 * x, odd=3 * x)

    model, batch = Wrapped(), {"x": torch.ones(2, 3)}
    assert OutputChange(model, [batch])._references[0].values.tolist() == [[2.0] * 3] * 2
    odd = OutputChange(model, [batch], output=lambda result: result.odd)
    assert odd._references[0].values.tolist() == [[3.0] * 3] * 2
    model.forward = lambda x: SimpleNamespace(hidden=x)
    with pytest.raises(ValueError, match="neither last_hidden_state nor logits"):
        OutputChange(model, [batch])


def test_validation_scores_outputs_and_labels_of_all_batches():
    model, *_ = base_and_tuned()
    data = [b | {"labels": torch.arange(4)} for b in batches(2)]

    def metric(outputs, labels):
        assert outputs.shape == (8, 5, 5) and labels.tolist() == [0, 1, 2, 3] * 2
        return float(outputs.mean())

    validation = Validation.on(model, data, metric, larger_is_better=False)
    with torch.no_grad():
        expected = float(torch.cat([model(b["x"]) for b in data]).mean())
    assert validation() == pytest.approx(expected, rel=1e-5) and not validation.larger_is_better
    assert Validation(lambda: 0.5)() == 0.5 and Validation(lambda: 0.5).larger_is_better


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: OutputChange(m, []), "at least one batch is needed"),
        (lambda m: OutputChange(m, batches(), distance="l1"), "distance must be one of"),
        (lambda m: OutputChange(m, batches(), top=-1), "top must be at least 0"),
        (lambda m: Validation.on(m, batches(), lambda o, y: 0.0), "'labels' in each of them"),
        (lambda m: Validation.on(m, [], lambda o, y: 0.0), "at least one batch"),
    ],
)
def test_objectives_without_data_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(net())


# --- the search -------------------------------------------------------------------------------


class Fake:
    """A model that remembers its q."""

    def __init__(self, p=0.99):
        self.survivors = dare({"w": np.ones(1000, np.float32)}, p, seed=0)
        self.q = None

    def set(self, q):
        self.q = q


def searched(score, p=0.99, larger=False, **options):
    model = Fake(p)
    asked = []

    def metric():
        asked.append(model.q)
        return score(model.q)

    found = search_q(model, Validation(metric, larger_is_better=larger), **options)
    assert model.q == found.q
    assert [q for q, _ in found.tried] == asked and len(set(asked)) == len(asked)
    assert (found.q, found.score) in found.tried
    return found


def test_the_grid_begins_at_1_minus_p_and_ties_go_to_the_largest_q():
    found = searched(lambda q: 0.0, p=0.99, step=0.005, rounds=3)
    assert [q for q, _ in found.tried] == pytest.approx([0.01, 0.015, 0.02, 0.025])
    assert found.q == pytest.approx(0.025)
    assert searched(lambda q: q).q == pytest.approx(0.01)  # DARE itself can win
    assert searched(lambda q: q, larger=True).q == pytest.approx(0.10)


@pytest.mark.parametrize(("p", "count"), [(0.0, 1), (0.5, 3), (0.9, 19), (0.9999, 19)])
def test_no_candidate_is_above_1_or_not_above_0(p, count):
    for method in ("grid", "two-stage", "golden"):
        found = searched(lambda q: -q, p=p, method=method)
        assert all(0 < q <= 1 for q, _ in found.tried)
        if method == "grid":
            assert len(found.tried) == count
    assert search_q(Fake(p), lambda: 0.0, p=0.75, rounds=0).q == 0.25


def test_the_stage_grids_are_the_official_ones_and_never_hold_0():
    line = Line(0.01, 0.05, 2)
    assert [line.at(t) for t in range(3)] == pytest.approx([0.01, 0.06, 0.11])
    fine = [0.015 + 0.005 * t for t in range(9)]
    assert refined(line, 0.01) == pytest.approx(fine)
    assert refined(line, 0.06) == pytest.approx([0.015 + 0.005 * t for t in range(19)])
    decoder = Line(0.0, 0.05, 2)  # where the official code starts at q = 0
    assert refined(decoder, 0.01) == pytest.approx([0.005, 0.01, *fine])


def test_two_stages_stop_after_four_that_are_worse_and_refine_around_the_best():
    found = searched(lambda q: abs(q - 0.033), method="two-stage", step=0.01, rounds=50)
    tried = [q for q, _ in found.tried]
    coarse = [0.01 + 0.01 * t for t in range(7)]
    assert tried[:7] == pytest.approx(coarse)  # 0.03 is the best, then four are worse
    # Up to 0.033 and four that are worse; 0.03 was scored before.
    assert tried[7:] == pytest.approx([0.021 + 0.001 * t for t in range(17) if t != 9])
    assert found.q == pytest.approx(0.033)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.integers(0, 200), st.booleans())
def test_a_golden_search_finds_the_grids_answer_in_few_steps(rounds, place, flat):
    def score(q):
        error = abs(q - (0.001 + 0.0005 * place))
        return max(error, 0.0007) if flat else error

    options = {"p": 0.999, "step": 0.0005, "rounds": rounds}
    golden, grid = (searched(score, method=m, **options) for m in ("golden", "grid"))
    assert golden.score == grid.score
    assert flat or golden.q == grid.q
    assert len(golden.tried) <= 3 + 1.45 * math.log2(rounds + 2)


def test_a_score_that_is_not_finite_loses_and_nothing_else_is_an_error():
    found = searched(lambda q: math.nan if q < 0.05 else 1 / q, p=0.99)
    assert found.q == pytest.approx(0.1)
    assert searched(lambda q: math.inf if q < 0.05 else q, larger=True).q == pytest.approx(0.1)
    with pytest.raises(ValueError, match="none of 19 candidates has a finite score"):
        searched(lambda q: math.nan)


def test_wrong_options_of_a_search_are_named():
    for options, message in (
        ({"step": 0.0}, "step must be a positive number, got 0.0"),
        ({"rounds": -1}, "rounds must be at least 0"),
        ({"method": "newton"}, "method must be 'grid', 'two-stage' or 'golden', got 'newton'"),
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            search_q(Fake(), lambda: 0.0, **options)
    listed = Fake()
    listed.survivors = replace(listed.survivors, mask=ListedMask({}))
    with pytest.raises(ValueError, match="p is needed"):
        search_q(listed, lambda: 0.0)


def test_the_search_on_a_model_finds_what_rebuilding_it_finds():
    model, tensors, base, survivors = base_and_tuned(0.9, size=0.3)
    objective = OutputChange(model, batches())
    tuned = snapshot(tensors)
    with RescaledModel(tensors, survivors, base) as rescaled:
        found = search_q(rescaled, objective)
    errors = {}
    for q, _ in found.tried:
        rebuilt = net()
        state = exchanged(rebuilt)
        change = rescale(survivors, q).rescaled()
        with torch.no_grad():
            for name, tensor in state.items():
                new = torch.from_numpy(np.asarray(change[name]))
                tensor.copy_(base[name] + new if tensor.is_floating_point() else new)
            gap = [
                (rebuilt(**batch) - reference.values).abs().mean()
                for batch, reference in zip(batches(), objective._references, strict=True)
            ]
        errors[q] = float(torch.stack(gap).mean())
    assert dict(found.tried) == pytest.approx(errors, rel=1e-5)
    assert found.q == min(errors, key=errors.get) > 0.1
    assert same_bits(tensors, tuned)


def test_eta_is_searched_like_q_and_gives_the_layers_q():
    model, tensors, base, survivors = base_and_tuned(0.9, size=0.3)
    objective = OutputChange(model, batches())
    inputs, delta = layer_inputs(model, batches()), Delta(snapshot(tensors), base)
    with RescaledModel(tensors, survivors, base) as rescaled:
        found = search_eta(rescaled, objective, delta, inputs, 0.9, step=0.5, rounds=6)
        assert objective() == found.score == min(score for _, score in found.tried)
    assert [eta for eta, _ in found.tried] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert (found.q == per_layer_q(delta, inputs, 0.9, eta=found.eta)).all()
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        search_eta(rescaled, objective, delta, inputs, 0.9, rounds=0)
    with pytest.raises(ValueError, match="spacing must be 'linear' or 'log', got 'cubic'"):
        search_eta(rescaled, objective, delta, inputs, 0.9, spacing="cubic")


@pytest.mark.parametrize("method", ["grid", "golden"])
def test_eta_on_a_logarithmic_scale_doubles_each_time(method):
    model, tensors, base, survivors = base_and_tuned(0.99, size=0.3)
    objective = OutputChange(model, batches())
    inputs, delta = layer_inputs(model, batches()), Delta(snapshot(tensors), base)
    with RescaledModel(tensors, survivors, base) as rescaled:
        found = search_eta(
            rescaled,
            objective,
            delta,
            inputs,
            0.99,
            step=2.0**-6,
            rounds=9,
            spacing="log",
            method=method,
        )
        assert objective() == found.score == min(score for _, score in found.tried)
    assert {eta for eta, _ in found.tried} <= {2.0**exponent for exponent in range(-6, 3)}
    assert len(found.tried) == 9 if method == "grid" else len(found.tried) < 9
    assert (found.q == per_layer_q(delta, inputs, 0.99, eta=found.eta)).all()


# --- least squares and learning ---------------------------------------------------------------


def linear(p, seed=0, size=0.1):
    """One linear layer with a bias, where all is known."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(20, 6))
    tensors = exchanged(model)
    base = snapshot(tensors)
    tune(model, size, seed)
    survivors = dare(Delta(tensors, base), p, seed=seed)
    data = [{"input": torch.randn(5, 20) + 0.5} for _ in range(3)]
    return model, tensors, base, survivors, data


def test_the_mse_form_sums_over_outputs_and_real_tokens():
    model, tensors, base, _, data = linear(0.9)
    change = {name: (tensors[name] - base[name]).detach().double() for name in tensors}
    x = torch.cat([batch["input"] for batch in data]).double()
    x = torch.cat([x, torch.ones(15, 1)], 1)
    matrix = torch.cat([change["0.weight"], change["0.bias"][:, None]], 1)
    c = matrix[None] * x[:, None]  # token, output, input
    expected = mse_optimal_q(float(c.sum(2).square().sum()), float(c.square().sum()), p=0.9)
    found = mse_q(model, Delta(tensors, base), data, 0.9)
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)


def test_least_squares_is_the_best_q_of_a_linear_model():
    model, tensors, base, survivors, data = linear(0.8)
    q = least_squares_q(model, Delta(snapshot(tensors), base), survivors, data, 0.8)
    assert q[0] == q[1] and 0.2 < q[0] < 1
    objective = OutputChange(model, data, distance="squared")
    with RescaledModel(tensors, survivors, base) as rescaled:
        grid = search_q(rescaled, objective, step=0.01, rounds=80)
        rescaled.set(q)
        assert objective() <= grid.score
        assert float(q[0]) == pytest.approx(grid.q, abs=0.01)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9999])
def test_the_closed_forms_answer_at_the_ends(p):
    model, tensors, base, survivors, data = linear(p)
    delta = Delta(tensors, base)
    for q in (mse_q(model, delta, data, p), least_squares_q(model, delta, survivors, data, p)):
        assert np.isfinite(q).all() and (q >= np.float32(1 - p)).all() and (q <= 1).all()
    still = Delta(base, base)
    np.testing.assert_allclose(mse_q(model, still, data, p), 1 - p, rtol=1e-6)
    nothing = dare(still, p, seed=0)
    np.testing.assert_allclose(least_squares_q(model, still, nothing, data, p), 1 - p, rtol=1e-6)


def test_closed_forms_on_a_model_skip_frozen_layers_and_refuse_one_without_linear_layers():
    model, tensors, base, survivors = base_and_tuned(0.9)
    delta = Delta(tensors, base)
    for q in (
        mse_q(model, delta, batches(), 0.9),
        least_squares_q(model, delta, survivors, batches(), 0.9),
    ):
        assert q.shape == (len(survivors.counts),) and ((q >= 0.0999) & (q <= 1)).all()
    with pytest.raises(ValueError, match=r"weight of a torch.nn.Linear"):
        mse_q(torch.nn.Conv2d(1, 1, 1), delta, batches(), 0.9)
    with pytest.raises(ValueError, match="no batches were given"):
        mse_q(model, delta, [], 0.9)


def test_the_gradient_by_q_is_that_of_the_outputs():
    model, tensors, base, survivors = base_and_tuned(0.5, torch.float64)
    data = [{"x": batch["x"].double()} for batch in batches(1)]
    objective = OutputChange(model, data, distance="squared")
    objective._references = [replace(r, values=r.values.double()) for r in objective._references]
    q = np.linspace(0.5, 0.9, len(survivors.counts))
    with RescaledModel(tensors, survivors, base) as rescaled:
        for index, spec in enumerate(survivors.layout.pruned):
            tensor = tensors[spec.name]
            losses = []
            for step in (-1e-3, 0.0, 1e-3):
                moved = 1 / (1 / q + step * (np.arange(q.size) == index))
                rescaled.set(moved.astype(np.float32))
                losses.append(objective.loss(0).item())
            rescaled.set(q.astype(np.float32))
            loss = objective.loss(0)
            (gradient,) = torch.autograd.grad(loss, [tensor], allow_unused=True)
            if gradient is not None:
                slope = float(rescaled.parts[index].slope(gradient))
                expected = (losses[2] - losses[0]) / 2e-3
                assert slope == pytest.approx(expected, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_q_is_better_than_dare_and_kept_where_it_was_best(dtype):
    model, tensors, base, survivors = base_and_tuned(0.9, dtype, size=0.3)
    cast = [{"x": b["x"].to(dtype)} for b in batches(8)]
    train, validation = (
        OutputChange(model, part, distance="squared") for part in (cast[:4], cast[4:])
    )
    tuned = snapshot(tensors)
    with RescaledModel(tensors, survivors, base) as rescaled:
        found = learn_q(rescaled, train, validation, steps=60, every=5)
        assert validation() == found.score
    assert found.tried[0][0] == 0 and found.score == min(score for _, score in found.tried)
    assert found.score < 0.7 * found.tried[0][1]
    assert ((found.q >= np.float32(0.0999)) & (found.q <= 1)).all()
    layers = dict(zip((s.name for s in survivors.layout.pruned), found.q, strict=True))
    assert layers["first.weight"] == layers["first.bias"] != layers["last.weight"]
    assert same_bits(tensors, tuned) and all(t.grad is None for t in tensors.values())


def test_learning_stops_early_and_keeps_dare_if_nothing_is_better():
    model, tensors, base, survivors, data = linear(0.5)
    train = OutputChange(model, data)
    scores = iter([1.0, 2.0, 3.0, 4.0, 0.0])
    validation = OutputChange(model, data)
    validation.__class__ = type("Worse", (OutputChange,), {"__call__": lambda self: next(scores)})
    with RescaledModel(tensors, survivors, base) as rescaled:
        found = learn_q(rescaled, train, validation, steps=500, every=2, patience=3)
    assert found.tried == ((0, 1.0), (2, 2.0), (4, 3.0), (6, 4.0))
    assert (found.q == 0.5).all() and found.score == 1.0


def test_wrong_options_of_learning_are_named():
    model, tensors, base, survivors, data = linear(0.5)
    objective = OutputChange(model, data)
    with RescaledModel(tensors, survivors, base) as rescaled:
        for options, message in (
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"every": 0}, "every must be at least 1"),
            ({"patience": 0}, "patience must be at least 1"),
            ({"lr": 0.0}, "lr must be positive"),
        ):
            with pytest.raises(ValueError, match=message):
                learn_q(rescaled, objective, objective, **options)
    model.requires_grad_(False)
    with (
        RescaledModel(tensors, survivors, base) as rescaled,
        pytest.raises(ValueError, match="nothing to learn"),
    ):
        learn_q(rescaled, objective, objective)
