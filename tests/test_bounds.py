"""Thm 3.1: moments that are exact, a bound that holds, and the printed one that does not."""

from __future__ import annotations

import csv
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fl_darex.analysis import bounds, h_diff_bound, h_diff_mean, h_diff_variance
from fl_darex.analysis.bounds import (
    berend_kontorovich,
    chernoff_bound,
    hoeffding_bound,
    kearns_saul,
    phi,
    printed_bound,
    printed_psi,
)
from fl_darex.analysis.bounds_figure import bounds_over_p, plot_bounds
from fl_darex.masks import ONE, keep_threshold
from fl_darex.pruning import dare
from fl_darex.rescaling import rescale

PS = st.floats(0.01, 0.999)
QS = st.floats(0.001, 1)
GAMMAS = st.floats(1e-6, 0.5)


def sums(c: np.ndarray) -> tuple[float, float]:
    return float(c.sum()), float((c * c).sum())


def chance_outside(n: int, p: float, q: float, bound: float) -> float:
    """P(|h| > bound) for n entries c = 1: h = n - K/q with K ~ Binomial(n, 1-p)."""
    kept = np.arange(n + 1)
    outside = np.abs(n - kept / q) > bound * (1 + 1e-12)
    return float(binom.pmf(kept, n, 1 - p)[outside].sum())


# --- moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [None, 0.02, 0.3, 1.0])
def test_moments_of_h_are_those_of_real_draws(q):
    rows, p = 40_000, 0.9
    c = np.float32([0.5, -1.0, 2.0, 0.25, 0.25, -0.125, 3.0, 0.5])
    pruned = dare({"w": np.tile(c, (rows, 1))}, p, seed=5)
    used = keep_threshold(p) / ONE if q is None else q
    kept = rescale(pruned, used).rescaled()["w"].astype(np.float64)
    h = c.sum(dtype=np.float64) - kept.sum(1)
    mean, variance = h_diff_mean(c.sum(), p, q), h_diff_variance((c * c).sum(), p, q)
    spread = (h - mean) ** 2
    assert abs(h.mean() - mean) <= 5 * math.sqrt(variance / rows)
    assert abs(spread.mean() - variance) <= 5 * spread.std() / math.sqrt(rows)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), PS, QS)
def test_moments_are_those_of_all_patterns(c, p, q):
    c = np.array(c)
    first, second = sums(c)
    patterns = np.array(list(itertools.product([0, 1], repeat=c.size)))
    chance = np.prod(np.where(patterns == 1, 1 - p, p), axis=1)
    h = first - patterns @ c / q
    mean = chance @ h
    variance = chance @ (h - mean) ** 2
    scale = 1 + np.abs(c).sum() / q
    assert h_diff_mean(first, p, q) == pytest.approx(mean, abs=1e-12 * scale)
    assert h_diff_variance(second, p, q) == pytest.approx(variance, rel=1e-9, abs=1e-13 * scale**2)


def test_limit_cases_of_the_moments():
    assert h_diff_mean(7.0, 0.99) == 0.0
    assert h_diff_mean(7.0, 0.99, 1.0) == pytest.approx(0.99 * 7.0)
    assert h_diff_variance(4.0, 0.0) == 0.0
    assert h_diff_variance(4.0, 0.99) == pytest.approx(99 * 4.0)
    rows = np.array([0.0, 1.0, 4.0])
    np.testing.assert_allclose(h_diff_variance(rows, 0.5), rows)


# --- constants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "expected", "scale"),
    [
        (0.9, 0.36410, 0.4243),
        (0.95, 0.30566, 0.3082),
        (0.99, 0.21327, 0.1407),
        (0.995, 0.18703, 0.0997),
        (0.999, 0.14450, 0.0447),
    ],
)
def test_constants_are_the_known_ones(p, expected, scale):
    assert phi(p) == pytest.approx(expected, abs=5e-6)
    assert kearns_saul(p) == pytest.approx(math.sqrt(expected), abs=1e-5)
    assert berend_kontorovich(p) == pytest.approx(scale, abs=5e-5)


def test_phi_is_stable_where_its_formula_is_0_over_0():
    assert phi(0.5) == 0.5
    assert phi(0.0) == phi(1.0) == 0.0
    for tilt in (2.0**-k for k in range(2, 53)):  # Phi = t / (2 atanh t) = (1 - t^2/3 - ...) / 2
        p = 0.5 - tilt / 2
        assert phi(p) == pytest.approx((1 - tilt**2 / 3) / 2, abs=tilt**4 / 20 + 2e-16)
        assert phi(1 - p) == phi(p)


@pytest.mark.parametrize("p", [1e-300, 1e-20, 1e-5, 0.1, 0.2499, 0.25, 0.2501, 0.4])
def test_phi_agrees_with_its_definition(p):
    exact = float(1 - 2 * Fraction(p)) / (math.log1p(-p) - math.log(p))
    assert phi(p) == pytest.approx(exact, rel=1e-14)


def test_printed_psi_jumps_where_the_square_root_is_missing():
    assert printed_psi(0.5) == 0.5
    assert printed_psi(math.nextafter(0.5, 1)) == pytest.approx(0.70711, abs=1e-5)
    assert kearns_saul(0.5) == pytest.approx(0.70711, abs=1e-5)


@given(st.floats(0, 1))
def test_the_valid_constant_lies_between_the_others(p):
    assert berend_kontorovich(p) <= kearns_saul(p) + 1e-15 <= bounds.HOEFFDING + 2e-15


# --- bounds --------------------------------------------------------------------------------------


def test_golden_bounds_of_one_entry():
    case = {"p": 0.99, "gamma": 0.005}
    assert printed_bound(1.0, **case) == pytest.approx(34.443, abs=1e-3)
    assert h_diff_bound(1.0, 1.0, **case) == pytest.approx(113.040, abs=1e-3)
    assert abs(1 - 1 / (1 - 0.99)) == pytest.approx(99)
    assert chance_outside(1, 0.99, 0.01, 34.443) == pytest.approx(0.01)
    assert chance_outside(1, 0.99, 0.01, 113.040) == 0.0


@pytest.mark.parametrize(
    ("n", "gamma", "printed_holds"),
    [
        (1, 0.005, False),
        (10, 1e-2, True),
        (10, 1e-3, False),
        (100, 1e-2, True),
        (100, 1e-3, False),
        (1000, 1e-3, True),
        (1000, 1e-6, False),
    ],
)
def test_the_valid_bound_holds_where_the_printed_one_is_broken(n, gamma, printed_holds):
    p = 0.99
    printed = printed_bound(float(n), p, gamma=gamma)
    assert (chance_outside(n, p, 1 - p, printed) <= gamma) is printed_holds
    for bound in (h_diff_bound, hoeffding_bound):
        assert chance_outside(n, p, 1 - p, bound(float(n), float(n), p, gamma=gamma)) <= gamma


@settings(deadline=None)
@given(st.integers(1, 400), PS, QS, GAMMAS)
def test_the_bound_holds_for_every_p_q_and_gamma(n, p, q, gamma):
    assert chance_outside(n, p, q, h_diff_bound(float(n), float(n), p, gamma=gamma, q=q)) <= gamma


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=9), PS, QS, GAMMAS, st.floats(1e-3, 10))
def test_all_bounds_hold_for_rows_of_any_signs(c, p, q, gamma, eta):
    first, second = sums(np.array(c))
    patterns = np.array(list(itertools.product([0, 1], repeat=len(c))))
    chance = np.prod(np.where(patterns == 1, 1 - p, p), axis=1)
    h = np.abs(first - patterns @ np.array(c) / q)
    for bound in (
        h_diff_bound(first, second, p, gamma=gamma, q=q),
        hoeffding_bound(first, second, p, gamma=gamma, q=q),
        chernoff_bound(first, second, p, gamma=gamma, q=q, eta=eta),
    ):
        assert chance[h > bound + 1e-9].sum() <= gamma


@pytest.mark.parametrize("n", [1, 10, 100])
def test_berend_and_kontorovich_bound_the_side_where_too_few_survive(n):
    p, gamma = 0.99, 1e-3
    kept = np.arange(n + 1)
    bound = printed_bound(float(n), p, gamma=2 * gamma)  # log(1/gamma): one side
    assert binom.pmf(kept, n, 1 - p)[n - kept / (1 - p) > bound].sum() <= gamma


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0.01, 50), PS, QS, GAMMAS, st.floats(0.01, 100))
def test_the_best_eta_gives_the_bound_itself(first, second, p, q, gamma, factor):
    case = {"p": p, "gamma": gamma, "q": q}
    best = 2 * q * math.sqrt(math.log(2 / gamma) / (phi(p) * second))
    bound = h_diff_bound(first, second, **case)
    assert chernoff_bound(first, second, eta=best, **case) == pytest.approx(bound, rel=1e-12)
    assert chernoff_bound(first, second, eta=best * factor, **case) >= bound * (1 - 1e-12)


def test_nothing_dropped_moves_nothing():
    assert h_diff_bound(3.0, 5.0, 0.0, gamma=0.05) == 0.0
    assert h_diff_bound(3.0, 5.0, 0.0, gamma=0.05, q=1.0) == 0.0


def test_bounds_of_all_outputs_come_at_once():
    first, second = np.array([1.0, -2.0]), np.array([1.0, 9.0])
    found = h_diff_bound(first, second, 0.9, gamma=0.05, q=0.2)
    one = [h_diff_bound(a, b, 0.9, gamma=0.05, q=0.2) for a, b in [(1.0, 1.0), (-2.0, 9.0)]]
    np.testing.assert_allclose(found, one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"p": -0.1}, r"p must be in \[0, 1\), got -0.1"),
        ({"p": float("nan")}, r"p must be in \[0, 1\), got nan"),
        ({"q": 0.0}, r"q must be in \(0, 1\], got 0.0"),
        ({"q": 1.5}, r"q must be in \(0, 1\], got 1.5"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\), got 0.0"),
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\), got 1.0"),
        ({"eta": 0.0}, "eta must be a number above 0, got 0.0"),
    ],
)
def test_arguments_outside_their_range_are_refused(change, message):
    case = {"p": 0.9, "gamma": 0.05, "q": 0.1, "eta": 1.0} | change
    with pytest.raises(ValueError, match=message):
        chernoff_bound(1.0, 1.0, **case)


@pytest.mark.parametrize("p", [-1e-9, 1.1, float("nan")])
def test_phi_of_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
        phi(p)


# --- Fig. 10 -------------------------------------------------------------------------------------


def test_figure_10_has_three_curves_that_meet_at_a_half():
    curves = bounds_over_p(np.array([0.0, 0.5, 0.99]))
    np.testing.assert_allclose(curves["hoeffding"], [0.70711, 1.41421, 70.7107], rtol=1e-5)
    np.testing.assert_allclose(curves["kearns_saul"], [0, 1.41421, 46.181], rtol=1e-5)
    np.testing.assert_allclose(curves["berend_kontorovich"], [0, 1.41421, 14.0712], rtol=1e-5)


def test_figure_10_is_written_as_a_table_and_a_picture(tmp_path):
    table, picture = plot_bounds(tmp_path / "figures")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 199 and float(rows[-1]["p"]) == 0.995
    assert float(rows[-1]["kearns_saul"]) == kearns_saul(0.995) / (1 - 0.995)
    assert picture.read_bytes().startswith(b"\x89PNG")
