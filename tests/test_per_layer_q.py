"""Eq. 5, its closed forms and the official half-precision walk, against plain transcriptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.delta import Delta, Layout
from fl_darex.masks import ONE, keep_threshold
from fl_darex.rescaling import mse_optimal_q, per_layer_q, phi
from fl_darex.rescaling.eq5 import eq5, grid_eq5, minimise_eq5
from fl_darex.rescaling.fp16 import half_sums, official_q
from fl_darex.rescaling.layers import PerLayer, spread

ETAS = (0.1, 0.37, 1.01, 3.0, 10.0)
RATES = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 0.9999])
SUMS = st.floats(-1e3, 1e3)


@dataclass
class Mean:
    """Inputs of a layer."""

    mean: np.ndarray


def objective(q, s1, s2, p, eta, gamma=0.05):
    """Eq. 5, letter by letter."""
    noise = 0.5 if p == 0.5 else (1 - 2 * p) / math.log((1 - p) / p) if p else 0.0
    bias = eta * (1 - 1 / q * (1 - p)) * s1
    return abs(math.log(2 / gamma) + bias + eta**2 * noise * s2 / (4 * q**2))


def bert_like(seed):
    rng = np.random.default_rng(seed)
    changed = rng.normal(0, 1e-3, (768, 768)).astype(np.float32)
    return changed * rng.normal(0, 0.3, 768).astype(np.float32)


# --- the formulas ----------------------------------------------------------------------------


def test_phi_is_that_of_the_sheet_and_has_its_limits():
    known = {0.9: 0.36410, 0.95: 0.30566, 0.99: 0.21327, 0.995: 0.18703, 0.999: 0.14450}
    for p, expected in known.items():
        assert phi(p) == pytest.approx(expected, abs=5e-6)
        assert phi(p) == pytest.approx(phi(1 - p), rel=1e-12)
    assert (phi(0.5), phi(0.0)) == (0.5, 0.0)
    assert phi(0.5 + 1e-9) == pytest.approx(0.5, abs=1e-15)
    assert phi(0.9999) == pytest.approx((1 - 2 * 0.9999) / math.log(0.0001 / 0.9999), rel=1e-9)


@pytest.mark.parametrize("p", [1.0, -0.1, math.nan])
def test_a_rate_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"p .* must be in \[0, 1\)"):
        eq5(0.5, 1.0, 1.0, p=p, eta=1.0)


@settings(deadline=None, max_examples=200)
@given(RATES, SUMS, st.floats(0, 1e3), st.floats(0, 20), st.floats(0, 1))
def test_the_objective_is_equation_5(p, s1, s2, eta, place):
    q = (1 - p) + place * p
    expected = objective(q, s1, s2, p, eta)
    scale = 4 + eta * abs(s1) + eta**2 * s2 / q**2
    assert float(eq5(q, s1, s2, p=p, eta=eta)) == pytest.approx(expected, abs=1e-12 * scale)


@settings(deadline=None, max_examples=300)
@given(RATES, SUMS, st.floats(0, 1e3), st.floats(0, 20))
def test_the_closed_form_is_not_beaten_by_any_q_of_a_fine_grid(p, s1, s2, eta):
    q = float(minimise_eq5(s1, s2, p=p, eta=eta))
    assert 1 - p - 1e-12 <= q <= 1
    # Even in 1/q, where the objective is a parabola; s1 < 0 has roots.
    grid = 1 / np.linspace(1, 1 / (1 - p), 2001)
    scale = 4 + eta * abs(s1) + eta**2 * s2 / (1 - p) ** 2
    best = float(eq5(grid, s1, s2, p=p, eta=eta).min())
    assert objective(q, s1, s2, p, eta) <= best + 1e-11 * scale


def test_equation_5_as_printed_has_roots_and_the_larger_q_of_two_is_taken():
    # log 40 - 5 (1 - .01 u) + 1e-4 u^2 = 0 has the root u = 24.82 in [1, 100] and one below 1.
    p, eta = 0.99, 1.0
    s2 = 4e-4 / phi(p)
    q = float(minimise_eq5(-5.0, s2, p=p, eta=eta))
    assert objective(q, -5.0, s2, p, eta) < 1e-12
    # With more curvature there are two roots inside.
    q = float(minimise_eq5(-40.0, 100 * s2, p=p, eta=eta))
    roots = np.roots([1e-2, 0.4, math.log(40) - 40])
    u = roots[(roots >= 1) & (roots <= 100)]
    assert 1 / q == pytest.approx(u.min(), rel=1e-9)


def test_the_two_sided_minimiser_is_the_one_written_down():
    rng = np.random.default_rng(0)
    s1, s2 = np.abs(rng.normal(size=100)), rng.exponential(size=100) * 1e-2
    for eta in ETAS:
        expected = np.clip(eta * phi(0.99) * s2 / (2 * 0.01 * s1), 0.01, 1)
        np.testing.assert_allclose(minimise_eq5(s1, s2, p=0.99, eta=eta), expected, rtol=1e-9)
    assert minimise_eq5(0.0, 1.0, p=0.99, eta=1.0) == 1.0
    assert minimise_eq5(0.0, 0.0, p=0.99, eta=1.0) == 1.0
    assert minimise_eq5(1.0, 1.0, p=0.99, eta=0.0) == 1.0


@pytest.mark.parametrize(("p", "step"), [(0.99, 0.001), (0.5, 0.1), (0.9999, 1e-3), (0, 0.1)])
def test_the_grid_argmin_is_that_of_a_loop_over_all_candidates(p, step):
    rng = np.random.default_rng(1)
    s1, s2 = rng.normal(size=60), rng.exponential(size=60) * 10 ** rng.uniform(-4, 1, 60)
    s1[:3], s2[:2] = 0, 0
    grid = [(1 - p) + t * step for t in range(math.floor(p / step + 1e-9) + 1)]
    for eta in ETAS:
        found = grid_eq5(s1, s2, p=p, eta=eta, step=step)
        for row in range(60):
            errors = [objective(q, abs(s1[row]), s2[row], p, eta) for q in grid]
            assert found[row] == pytest.approx(min(found[row], 1))
            assert objective(found[row], abs(s1[row]), s2[row], p, eta) <= min(errors) * (1 + 1e-12)
            assert np.abs(np.array(grid) - found[row]).min() < 1e-12
        assert found[0] == pytest.approx(grid[-1])  # a tie of all: the largest


# --- the optimum of the squared error ---------------------------------------------------------


def test_the_mse_optimal_q_of_the_golden_example():
    p = 0.99
    torch.manual_seed(1)
    c = (0.4 + 0.3 * torch.randn(200)).double().numpy()
    square, noise = c.sum() ** 2, (c**2).sum()
    q = mse_optimal_q(square, noise, p=p)
    assert q == pytest.approx(0.018011, abs=5e-7)

    def error(q):
        return (1 - (1 - p) / q) ** 2 * square + p * (1 - p) * noise / q**2

    # Golden numbers of a Monte Carlo run; the exact values lie within 2 % of them.
    for number, exact in ((2699, error(q)), (4851, error(1 - p)), (6165, square)):
        assert exact == pytest.approx(number, rel=0.02)
    grid = np.linspace(0.01, 0.1, 1000)
    assert grid[error(grid).argmin()] == pytest.approx(0.018043, abs=9.1e-5)  # one step

    draws = 20_000
    kept = np.random.default_rng(0).random((draws, 200)) < 1 - p
    for candidate in (1 - p, q, 0.05):
        squares = ((1 - kept / candidate) @ c) ** 2
        assert abs(squares.mean() - error(candidate)) <= 5 * squares.std() / draws**0.5


def test_the_mse_optimal_q_has_its_limits():
    assert mse_optimal_q(0.0, 0.0, p=0.99) == pytest.approx(0.01)
    assert mse_optimal_q(0.0, 1.0, p=0.99) == 1.0
    assert mse_optimal_q(1e-9, 1.0, p=0.99) == 1.0
    assert mse_optimal_q(2.0, 1.0, p=0.0) == 1.0
    assert mse_optimal_q(1.0, 1.0, p=0.5) == 1.0


# --- the official code ------------------------------------------------------------------------


def walk(c, eta, p, gamma=0.05):
    """The conventions of the official code, one torch operation at a time."""
    rows = c.shape[0]
    chosen, seen = torch.full((rows, 1), 1 - p), torch.zeros(rows, 1)
    best = torch.full((rows, 1), 10000.0, dtype=torch.float16)
    noise = np.float64((1 - 2 * p) / np.log((1 - p) / p))
    s1, s2 = torch.sum(c, dim=1, keepdim=True), torch.sum(c**2, dim=1, keepdim=True)
    for k in range(int((1 - p) * 1000), 999):
        q = k * 0.001
        first = (1 - (1 - p) / q) * s1
        second = eta**2 * noise * s2 / (4 * q**2)
        error = abs(eta * first + (second + np.log(2 / gamma)))
        better, worse = error <= best, error >= best
        best[better] = error[better]
        chosen[better] = q
        seen[worse] = 1
        if seen.mean() >= 0.8:
            break
    return chosen[:, 0].double().numpy()


@pytest.mark.parametrize("p", [0.9, 0.99, 0.995])
def test_the_half_precision_walk_is_torchs_bit_for_bit(p):
    c = bert_like(0)[:100]
    for scale in (1.0, 10.0):
        sums = half_sums(c * np.float32(scale))
        half = torch.from_numpy(c * np.float32(scale)).half()
        for eta in ETAS:
            expected = walk(half, eta, p)
            np.testing.assert_allclose(official_q(*sums, p=p, eta=eta), expected, rtol=1e-6)


def test_half_precision_and_not_equation_5_decides_the_official_q():
    # The sheet's numbers for one draw of such c; between draws a layer's q moves by some 0.001 k.
    half, exact = (0.0110, 0.0129, 0.0220, 0.0420, 0.0900), (0.52, 0.56, 0.63, 0.77, 0.96)
    c = bert_like(0)
    s1, s2 = c.sum(1, dtype=np.float64), (c.astype(np.float64) ** 2).sum(1)
    grid = np.arange(998, 9, -1)[:, None] * 0.001
    for eta, expected, other in zip(ETAS, half, exact, strict=True):
        found = official_q(*half_sums(c), p=0.99, eta=eta).mean()
        assert found == pytest.approx(expected, rel=0.2)
        printed = grid[eq5(grid, s1, s2, p=0.99, eta=eta).argmin(0)].mean()
        assert printed == pytest.approx(other, rel=0.06)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9999])
def test_the_official_walk_answers_where_the_official_code_fails(p):
    s1, s2 = half_sums(bert_like(0)[:20])
    q = official_q(s1, s2, p=p, eta=1.0)
    assert np.isfinite(q).all() and (q > 0).all() and (q <= 1).all()


# --- layers -----------------------------------------------------------------------------------


def bert_names(rng):
    return {
        "embeddings.weight": rng.normal(0, 1e-2, (5, 4)),
        "layer.LayerNorm.weight": rng.normal(0, 1e-2, 4),
        "layer.one.bias": rng.normal(0, 1e-2, 3),
        "layer.one.weight": rng.normal(0, 1e-2, (3, 4)),
        "layer.two.weight": rng.normal(0, 1e-1, (2, 3)),
        "still.bias": np.zeros(2),
        "still.weight": np.zeros((2, 4)),
        "steps": np.array(3),
    }


def model(rng):
    delta = {
        name: value.astype(np.float32) if value.dtype.kind == "f" else value
        for name, value in bert_names(rng).items()
    }
    weights = ("layer.one.weight", "layer.two.weight", "still.weight")
    return delta, {name: Mean(rng.normal(size=delta[name].shape[1])) for name in weights}


@pytest.mark.parametrize("form", ["paper", "closed"])
@pytest.mark.parametrize("p", [0.5, 0.99, 0.9999])
def test_a_layer_takes_its_rows_mean_a_bias_its_weights_q_and_others_the_layers_mean(p, form):
    rng = np.random.default_rng(0)
    delta, inputs = model(rng)
    found = per_layer_q(delta, inputs, p, eta=2.0, form=form)
    expected = {}
    for name in ("layer.one", "layer.two"):
        rows = []
        for i, row in enumerate(delta[f"{name}.weight"]):
            c = list(row * inputs[f"{name}.weight"].mean.astype(np.float32))
            c += [delta[f"{name}.bias"][i]] if f"{name}.bias" in delta else []
            s1, s2 = abs(sum(map(float, c))), sum(float(x) ** 2 for x in c)
            q = float(np.clip(2.0 * phi(p) * s2 / (2 * (1 - p) * s1), 1 - p, 1))
            if form == "paper":
                step = (1 - p) / 10
                grid = (1 - p) + np.arange(math.floor(p / step + 1e-9) + 1) * step
                errors = eq5(grid, s1, s2, p=p, eta=2.0)
                q = grid[errors <= errors.min()].max()
            rows.append(q)
        expected[name] = np.mean(rows)
    mean = np.mean(list(expected.values()))
    one, two = expected["layer.one"], expected["layer.two"]
    # In canonical order; a layer without a delta takes the mean and is not part of it.
    np.testing.assert_allclose(found, [mean, mean, one, one, two, mean, mean], rtol=1e-6)
    assert found.dtype == np.float32


def test_the_official_form_knows_layers_by_name_and_averages_the_signed_rows():
    rng = np.random.default_rng(3)
    delta, inputs = model(rng)
    delta["classifier.weight"], inputs["classifier.weight"] = (
        delta["layer.one.weight"],
        Mean(np.ones(4)),
    )
    found = per_layer_q(delta, inputs, 0.99, eta=1.0, compat="fp16")
    q = {}
    for name in ("layer.one", "layer.two", "still"):
        c = delta[f"{name}.weight"] * inputs[f"{name}.weight"].mean.astype(np.float32)
        if f"{name}.bias" in delta:
            c = np.concatenate([c, delta[f"{name}.bias"][:, None]], axis=1)
        q[name] = walk(torch.from_numpy(c).half(), 1.0, 0.99).mean()
    mean = np.mean(list(q.values()))
    one, two, still = q.values()
    expected = [mean, mean, mean, one, one, two, still, still]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nothing_is_pruned_at_p_of_0_and_no_layer_with_a_delta_leaves_1_minus_p():
    delta, inputs = model(np.random.default_rng(0))
    assert (per_layer_q(delta, inputs, 0.0, eta=1.0) == 1).all()
    zero = {name: np.zeros_like(value) for name, value in delta.items()}
    for form in ("paper", "closed"):
        q = per_layer_q(zero, inputs, 0.99, eta=1.0, form=form)
        np.testing.assert_allclose(q, 0.01, rtol=1e-6)


def test_dense_biases_are_no_column_and_a_one_element_layer_works():
    delta = {"w.weight": np.full((1, 1), 0.1, np.float32), "w.bias": np.ones(1, np.float32)}
    inputs = {"w.weight": Mean(np.full(1, 0.5))}
    alone = per_layer_q({"w.weight": delta["w.weight"]}, inputs, 0.99, eta=1.0, form="closed")
    dense = per_layer_q(Delta(delta, dense=["w.bias"]), inputs, 0.99, eta=1.0, form="closed")
    pruned = per_layer_q(delta, inputs, 0.99, eta=1.0, form="closed")
    assert alone == dense != pruned[0]


@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 0.9995])
def test_no_q_is_below_what_a_receiver_accepts(p):
    delta, inputs = model(np.random.default_rng(0))
    lowest = np.float32(keep_threshold(p) / ONE)
    for form in ("paper", "closed"):
        q = per_layer_q(delta, inputs, p, eta=1e-9, form=form)
        assert (q >= lowest).all() and q == pytest.approx(1 - p, rel=1e-6)


def test_sums_are_taken_once_for_all_eta():
    delta, inputs = model(np.random.default_rng(0))
    layers = PerLayer(Delta(delta), inputs, 0.99)
    for eta in ETAS:
        assert (layers.q(eta) == per_layer_q(delta, inputs, 0.99, eta=eta)).all()


def test_without_layers_q_is_the_keep_rate():
    layout = Layout.of({"a": np.zeros(3), "b": np.zeros((2, 2))})
    assert spread(layout, {}, keep=0.25).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.0}, r"p is the fraction dropped and must be in \[0, 1\), got 1.0"),
        ({"eta": -1.0}, "eta must be a finite number, 0 or more, got -1.0"),
        ({"eta": math.nan}, "eta must be"),
        ({"gamma": 0.0}, r"gamma is a probability in \(0, 1\), got 0.0"),
        ({"form": "best"}, "form must be 'paper' or 'closed', got 'best'"),
        ({"compat": "bf16"}, "compat must be None or 'fp16', got 'bf16'"),
        ({"step": 0.0}, "step must be positive, got 0.0"),
        ({"inputs": {}}, "no pruned linear layer is among the inputs"),
        ({"inputs": {"layer.one.weight": Mean(np.ones(7))}}, "has 4 inputs, statistics"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    delta, inputs = model(np.random.default_rng(0))
    arguments = {"inputs": inputs, "p": 0.99, "eta": 1.0} | change
    with pytest.raises(ValueError, match=message):
        per_layer_q(delta, arguments.pop("inputs"), arguments.pop("p"), **arguments)
