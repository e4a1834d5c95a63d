"""rho, how much clients agree, and what that makes of their masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.compression.rho import Norms, Rho, effective, meeting, noise, rho, squared
from fl_darex.compression.update import SparseUpdate
from fl_darex.compression.uplink import Uplink
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta
from fl_darex.masks import ONE
from fl_darex.pruning import draw

Updates = list[np.ndarray]
NAME = "w"


def clients(count: int, size: int, agree: float, seed: int = 0) -> Updates:
    """Updates that are partly the same; 0: independent, 1: equal."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=size)
    return [
        (agree**0.5 * common + (1 - agree) ** 0.5 * rng.normal(size=size)).astype(np.float32)
        for _ in range(count)
    ]


def exact_rho(updates: Updates, weights: list[float]) -> float:
    share = np.array(weights, np.float64) / sum(weights)
    whole = np.array(updates, np.float64)
    mean = np.square(share @ whole).sum()
    return float(mean / (share @ np.square(whole).sum(axis=1)))


def mean_of(
    updates: Updates, uplink: Uplink, round_: int, weights: list[float] | None = None
) -> tuple[np.ndarray, Norms | None]:
    """What a server makes of a round's packets, and how they lie to each other."""
    before = {NAME: np.zeros(updates[0].size, np.float32)}
    layout = uplink.layout(before)
    parts = []
    for slot, update in enumerate(updates):
        kept = draw(Delta({NAME: update}, layout=layout), uplink.drawn(round_, slot))
        kept = replace(kept, q=uplink.divisor)
        parts.append(Part(SparseUpdate.of_survivors(kept), weights[slot] if weights else 1.0))
    mean, odd = weighted_mean(before, layout, parts)
    assert mean is not None and not odd
    return mean[NAME], mean.norms


def estimate(updates: Updates, uplink: Uplink, round_: int, *more: Any) -> Rho:
    norms, meet = mean_of(updates, uplink, round_, *more)[1], meeting(uplink.mask, uplink.keep)
    assert norms is not None and meet is not None
    found = rho(norms, uplink.keep, meet)
    assert found is not None
    return found


# --- the estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("agree", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mask", ["client", "round", "disjoint"])
def test_rho_of_whole_updates_is_exact(agree, mask):
    updates, weights = clients(4, 500, agree), [1.0, 2.0, 0.5, 7.0]
    found = estimate(updates, Uplink.of("dare", 0.0, mask=mask), 1, weights)
    assert found.value == pytest.approx(exact_rho(updates, weights), rel=1e-5)
    assert found.error == 0.0


@pytest.mark.parametrize("agree", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("mask", ["client", "round"])
def test_rho_of_packets_is_right_on_average_and_as_sure_as_it_says(agree, mask):
    updates, weights, times = clients(4, 4000, agree), [1.0, 2.0, 1.5, 1.0], 300
    uplink = Uplink.of("dare", 0.9, mask=mask, q=0.5)  # q is the server's step, no part of rho
    found = [estimate(updates, uplink, n, weights) for n in range(1, times + 1)]
    values = np.array([one.value for one in found])
    # Dividing by an estimate shifts the ratio by its own relative variance: 2 / (k d), at most.
    shift = 2 / (0.1 * 4000)
    expected = exact_rho(updates, weights)
    assert abs(values.mean() - expected) <= 5 * values.std() / times**0.5 + shift * expected
    if agree == 0.0 or mask == "client":
        assert 0.5 <= values.std() / np.mean([one.error for one in found]) <= 1.6


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.floats(-9, 9, width=32), min_size=5, max_size=5), min_size=2, max_size=6),
    st.data(),
)
def test_rho_of_whole_updates_lies_between_0_and_1(rows, data):
    updates = [np.array(row, np.float32) for row in rows]
    weights = [data.draw(st.floats(0.1, 9)) for _ in rows]
    _, norms = mean_of(updates, Uplink.of("dare", 0.0), 1, weights)
    assert norms is not None
    found = rho(norms, ONE, 1.0)
    if found is None:
        assert all(one == 0.0 for one in norms.own)
    else:
        assert -1e-5 <= found.value <= 1 + 1e-5
        assert 0.0 <= found.bounded <= 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 9)), min_size=2), st.floats(0, 1e3))
def test_a_bounded_rho_is_a_share_whatever_the_norms_are(rows, total):
    weights, own = zip(*rows, strict=True)
    found = rho(Norms(weights, own, total, 3.0), ONE // 10, 0.1)
    assert found is None or (0.0 <= found.bounded <= 1.0 and found.error > 0.0)


def test_the_error_of_a_coding_is_no_part_of_an_update():
    updates, nmse, times = clients(4, 4000, 0.4), 0.57, 200
    uplink, rng, found = Uplink.of("dare", 0.9), np.random.default_rng(5), []
    for round_ in range(1, times + 1):
        noisy = [
            one + rng.normal(scale=nmse**0.5 * np.std(one), size=one.size).astype(np.float32)
            for one in updates
        ]
        norms = mean_of(noisy, uplink, round_)[1]
        assert norms is not None
        one = rho(norms, uplink.keep, 0.1, nmse)
        assert one is not None
        found.append(one.value)
    expected, error = exact_rho(updates, [1.0] * 4), np.std(found) / times**0.5
    assert abs(np.mean(found) - expected) <= 5 * error + 0.01 * expected


def test_where_packets_do_not_say_it_there_is_no_number():
    updates = clients(3, 400, 0.5)
    assert meeting("disjoint", ONE // 10) is None
    assert mean_of(updates[:1], Uplink.of("dare", 0.5), 1)[1] is None
    silent = [np.zeros(400, np.float32)] * 2
    norms = mean_of(silent, Uplink.of("dare", 0.5), 1)[1]
    assert norms is not None and rho(norms, ONE // 2, 0.5) is None
    assert rho(Norms((1.0, 0.0), (4.0, 0.0), 4.0, 9.0), ONE // 2, 0.5) is None


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_squares_are_added_up_as_in_float64(size, kind):
    numbers = np.random.default_rng(size).normal(size=size).astype(kind)
    expected = np.square(numbers.astype(np.float64)).sum()
    assert squared(numbers) == pytest.approx(expected, rel=1e-5)


def test_squares_that_overflow_make_no_number():
    large = [np.full(5000, 1e30, np.float32)] * 2
    norms = mean_of(large, Uplink.of("dare", 0.0), 1)[1]
    assert norms is not None and norms.total == float("inf")
    assert rho(norms, ONE, 1.0) is None


def test_weights_count_as_many_clients_as_average_alike():
    assert effective([2.0] * 7) == pytest.approx(7)
    assert effective([1.0, 0.0, 0.0]) == pytest.approx(1)
    assert effective([1.0, 2.0]) == pytest.approx(1.8)


# --- what it says of masks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "count", "agree", "weights"),
    [
        (0.9, 10, 0.0, None),
        (0.9, 10, 0.5, None),
        (0.9, 4, 0.7, [1.0, 2.0, 3.0, 1.0]),
        (0.5, 2, 0.3, None),
        (0.97, 20, 0.5, None),
    ],
)
@pytest.mark.parametrize("mask", ["client", "round", "disjoint"])
def test_the_noise_of_the_mean_is_that_of_the_formula(p, count, agree, weights, mask):
    updates, uplink, times = clients(count, 2000, agree), Uplink.of("dare", p, mask=mask), 60
    share = np.array(weights or [1.0] * count) / sum(weights or [1.0] * count)
    whole, squares = share @ np.array(updates, np.float64), [np.square(u).sum() for u in updates]
    errors = np.array(
        [
            np.square(mean_of(updates, uplink, n, weights)[0] - whole).sum() / (share @ squares)
            for n in range(times)
        ]
    )
    # `effective` takes clients to be of equal length, which these are to a few per cent.
    expected = noise(mask, uplink.keep, effective(list(share)), exact_rho(updates, list(share)))
    assert abs(errors.mean() - expected) <= 5 * errors.std() / times**0.5 + 0.02 * expected


def test_disjoint_masks_are_less_noisy_by_the_factor_of_the_formula():
    updates, times = clients(10, 2000, 0.5), 60
    found = {}
    for mask in ("client", "disjoint"):
        uplink, whole = Uplink.of("dare", 0.9, mask=mask), np.mean(updates, axis=0, dtype=float)
        errors = [np.square(mean_of(updates, uplink, n)[0] - whole).sum() for n in range(times)]
        found[mask] = (np.mean(errors), np.std(errors) / times**0.5)
    n_rho = 10 * exact_rho(updates, [1.0] * 10)
    factor = 1 - (n_rho - 1) * 0.1 / 0.9
    assert factor < 0.6
    (alone, one), (apart, other) = found["client"], found["disjoint"]
    assert abs(apart / alone - factor) <= 5 * (one + other) / alone + 0.01


def test_clients_that_want_the_same_lose_nothing_where_their_masks_cover_everything():
    same = clients(1, 3000, 0.0) * 10
    mean, _ = mean_of(same, Uplink.of("dare", 0.9, mask="disjoint"), 1)
    assert np.abs(mean - same[0]).max() <= 1e-5
    assert noise("disjoint", ONE // 10, 10, 1.0) == pytest.approx(0.0, abs=1e-7)


@given(st.integers(1, ONE), st.floats(1, 50), st.floats(0, 1))
def test_orthogonal_clients_do_not_care_about_masks_and_others_do(keep, count, more):
    lowest = 1 / count
    alone = noise("client", keep, count, lowest)
    for mask in ("round", "disjoint"):
        assert noise(mask, keep, count, lowest) == pytest.approx(alone, rel=1e-9, abs=1e-9)
    found = lowest + more * (1 - lowest)
    alone *= 1 + 1e-9
    assert noise("disjoint", keep, count, found) <= alone + 1e-9
    assert noise("round", keep, count, found) >= alone * (1 - 1e-8) - 1e-9
