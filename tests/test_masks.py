"""Masks against literals, a slow reference in Python integers, and the laws of chance."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.masks import BLOCK, ONE, draw, keep_threshold, mask_key, streams, survivors
from fl_darex.masks.gaps import tables

RATES = [0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]
KEY = 0x7E0A39886D826C1C
KEYS = st.integers(0, 2**64 - 1)


def block_survivors(key: int, block: int, length: int, kept: int) -> np.ndarray:
    """What survives in one block that is drawn alone, counted from its start."""
    stream = streams(np.array([key], np.uint64), np.array([block], np.uint64))
    return draw(stream, np.zeros(1, np.int64), np.array([length]), kept)[0]


# What follows is a second implementation, kept slow and plain on purpose: Python integers only.
WORD = 2**64
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def finalize(z: int) -> int:
    """SplitMix64's finalizer as published (Steele, Lea & Flood 2014, "mix variant 13")."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


@lru_cache
def powers(kept: int) -> list[int]:
    """``p**g`` for g = 1, 2, ... in units of 2**-32, rounded half up, while it is above 0.

    Exact fractions for few powers; 320 fractional bits where there are many.
    """
    if kept > ONE // 20:
        dropped, exact, units = Fraction(ONE - kept, ONE), Fraction(1), []
        while rounded := int((exact := exact * dropped) * ONE + Fraction(1, 2)):
            units.append(rounded)
        return units
    dropped, power, units = (ONE - kept) << 288, 1 << 320, []
    while len(units) < BLOCK and (
        rounded := ((power := power * dropped >> 320) + (1 << 287)) >> 288
    ):
        units.append(rounded)
    return units


def gap(uniform: int, kept: int) -> int:
    """1 + the number of g >= 1 with uniform / 2**32 < p**g (the powers fall, so by bisection)."""
    falling = powers(kept)
    low, high = 0, len(falling)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if uniform < falling[middle] else (low, middle)
    return 1 + low


def reference(key: int, numel: int, kept: int) -> list[int]:
    if kept == ONE:
        return list(range(numel))
    found = []
    for block, start in enumerate(range(0, numel, BLOCK)):
        stream = finalize((key + (block + 1) * GOLDEN_GAMMA) % WORD)
        draw, position, end = 0, start - 1, min(start + BLOCK, numel)
        while True:
            output = finalize((stream + draw // 2 * GOLDEN_GAMMA) % WORD)
            half = output % 2**32 if draw % 2 == 0 else output >> 32
            position, draw = position + gap(half, kept), draw + 1
            if position >= end:
                break
            found.append(position)
    return found


def digest(positions: np.ndarray) -> str:
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:32]


# --- literals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, 1, 0, "w"), 0x46B52DAAF01931EE),
        ((7, 3, 2, "encoder.layer.0.weight"), KEY),
        ((2**63 - 1, 1000, -1, "größe"), 0xC03ACAF2F1C57796),
    ],
)
def test_mask_keys_never_change(arguments, key):
    assert mask_key(*arguments) == key


@pytest.mark.parametrize(
    ("p", "kept", "count", "first", "last", "sha"),
    [
        (0.0, 4294967296, 263144, [0, 1, 2], 263143, "0f9d26139ddd37f265c83db30cffd490"),
        (0.1, 3865470566, 237015, [0, 1, 2], 263143, "2a9ee337a318aa78f49339638c2dbad1"),
        (0.5, 2147483648, 131645, [0, 2, 4], 263143, "ea706a493735ee755240587d7ede6d00"),
        (0.9, 429496730, 26341, [4, 15, 25], 263135, "d4eea61c27c8356ef9e6e5c1e737126d"),
        (0.99, 42949673, 2629, [48, 157, 257], 263096, "2d5790d5e4c72c0e92ac42b261b34f3c"),
        (0.999, 4294967, 275, [485, 1571, 2569], 259866, "3efedfafa548840b002a0870f03ed31a"),
        (0.9999, 429497, 29, [4861, 15724, 25705], 261415, "6bea838d8ba11bd183efbb2bc9183062"),
    ],
)
def test_masks_never_change_across_a_block_boundary(p, kept, count, first, last, sha):
    assert keep_threshold(p) == kept
    positions = survivors(KEY, BLOCK + 1000, kept)
    assert positions.dtype == np.int64
    assert (positions.size, positions[:3].tolist(), positions[-1]) == (count, first, last)
    assert digest(positions) == sha


def test_a_small_mask_never_changes():
    assert survivors(KEY, 120, keep_threshold(0.9)).tolist() == [
        *(4, 15, 25, 37, 47, 51, 56, 67, 86, 91, 95, 106, 108, 115, 117)
    ]
    half = [0, 2, 4, 6, 8, 9, 10, 12, 15, 16, 17, 19, 20, 21, 22, 25, 27, 28, 29, 31, 32, 34, 36]
    assert survivors(KEY, 40, keep_threshold(0.5)).tolist() == half


# --- the reference --------------------------------------------------------------------------


@pytest.mark.parametrize("p", RATES)
def test_masks_are_those_of_the_plain_reference_across_a_block_boundary(p):
    kept = keep_threshold(p)
    assert survivors(KEY, BLOCK + 1000, kept).tolist() == reference(KEY, BLOCK + 1000, kept)


@settings(deadline=None, max_examples=150)
@given(KEYS, st.integers(0, 3000), st.sampled_from([0.05, 0.3, 0.7, 0.95, 0.998]))
def test_masks_are_those_of_the_plain_reference_for_any_key(key, numel, p):
    kept = keep_threshold(p)
    assert survivors(key, numel, kept).tolist() == reference(key, numel, kept)


@pytest.mark.parametrize("kept", [1, 2, 1000, ONE // 2 + 1, ONE - 1])
def test_masks_are_those_of_the_plain_reference_at_the_ends_of_the_range(kept):
    numel = 2 * BLOCK + 7 if kept < 10**4 else 2000
    for key in (0, 1, KEY, 2**64 - 1):
        assert survivors(key, numel, kept).tolist() == reference(key, numel, kept)


def test_a_mask_that_needs_more_draws_than_expected_is_still_that_of_the_reference():
    # 899 entries at p = .999: 0.9 survivors on average and four draws at first, so that keys
    # with four survivors or more draw again (about 1 in 75: Poisson).
    kept, numel = keep_threshold(0.999), 899
    drawn_again = 0
    for key in range(3000):
        found = survivors(key, numel, kept)
        if found.size >= 4:
            drawn_again += 1
            assert found.tolist() == reference(key, numel, kept)
    assert drawn_again >= 10


@given(KEYS, st.integers(0, 5), st.integers(1, BLOCK), st.sampled_from(RATES))
@settings(deadline=None, max_examples=60)
def test_the_number_of_draws_made_at_once_does_not_matter(key, block, length, p):
    # A shorter block draws fewer numbers at once; it must be the start of the whole block.
    kept = keep_threshold(p)
    whole = block_survivors(key, block, BLOCK, kept)
    part = block_survivors(key, block, length, kept)
    assert part.tolist() == whole[whole < length].tolist()


def unfinalize(z: int) -> int:
    """The inverse of `finalize`: the state whose output is z."""

    def unshift(value: int, shift: int) -> int:
        found = value
        for _ in range(64 // shift):
            found = value ^ found >> shift
        return found

    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, WORD) % WORD
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD
    return unshift(z, 30)


def key_that_draws_first(low: int, high: int) -> int:
    """A key whose first two uniform numbers in block 0 are these."""
    stream = unfinalize(high << 32 | low)
    return (unfinalize(stream) - GOLDEN_GAMMA) % WORD


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.97])
def test_draws_on_the_border_between_two_gaps_fall_on_the_right_side(p):
    # A border is hit once in 2**32 draws, so these keys are made, not found.
    kept = keep_threshold(p)
    borders = [*powers(kept), 0, 1, 2, ONE - 1]
    for border in borders:
        for low in {max(border - 1, 0), border % ONE, min(border + 1, ONE - 1)}:
            key = key_that_draws_first(low, ONE // 3)
            found = survivors(key, 800, kept).tolist()
            assert found == reference(key, 800, kept)
            first = gap(low, kept) - 1
            assert (found or [800])[0] == first or first >= 800


@pytest.mark.parametrize("p", RATES)
def test_any_block_can_be_drawn_alone(p):
    kept, numel = keep_threshold(p), 3 * BLOCK + 12345
    whole = survivors(KEY, numel, kept)
    for block in (3, 0, 2, 1):
        start, end = block * BLOCK, min((block + 1) * BLOCK, numel)
        inside = whole[(whole >= start) & (whole < end)]
        alone = block_survivors(KEY, block, end - start, kept)
        assert (alone + start).tolist() == inside.tolist()


@given(KEYS, st.integers(0, 3 * BLOCK), st.sampled_from(RATES))
@settings(deadline=None, max_examples=40)
def test_positions_rise_without_repeats_inside_the_tensor(key, numel, p):
    positions = survivors(key, numel, keep_threshold(p))
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < numel)


# --- the laws of chance -----------------------------------------------------------------------


@pytest.mark.parametrize("p", RATES)
def test_the_share_of_survivors_is_the_keep_rate(p):
    kept, numel, keys = keep_threshold(p), 30_011, 400
    share = kept / ONE
    drawn = (survivors(mask_key(0, 1, 0, f"t{i}"), numel, kept) for i in range(keys))
    counts = np.array([positions.size for positions in drawn])
    # The counts are Binomial(numel, share): check the mean and the spread.
    variance = numel * share * (1 - share)
    assert abs(counts.mean() - numel * share) <= 5 * (variance / keys) ** 0.5
    # A sample variance has variance**2 * (2 / (n-1) + excess / n), where excess < 1 / variance.
    spread = variance * (2 / (keys - 1) + 1 / (variance * keys)) ** 0.5
    assert abs(counts.var(ddof=1) - variance) <= 5 * spread


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_every_position_is_kept_equally_often(p):
    kept, numel, keys = keep_threshold(p), 257, 8_000
    share = kept / ONE
    times = np.zeros(numel)
    for key in range(keys):
        times[survivors(key * 0x9E37 + 1, numel, kept)] += 1
    error = (share * (1 - share) / keys) ** 0.5
    assert np.abs(times / keys - share).max() <= 5 * error


def test_both_sides_of_a_block_boundary_are_kept_equally_often():
    kept, keys = keep_threshold(0.9), 1500
    share = kept / ONE
    hits = np.zeros(4)
    for key in range(keys):
        positions = survivors(key, BLOCK + 2, kept)
        hits += np.isin(np.arange(BLOCK - 2, BLOCK + 2), positions[-8:])
    assert np.abs(hits / keys - share).max() <= 5 * (share * (1 - share) / keys) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
def test_gaps_between_neighbours_are_geometric(p):
    kept = keep_threshold(p)
    share = kept / ONE
    gaps = np.concatenate([np.diff(survivors(key, BLOCK, kept)) for key in range(8)])
    # Bins 1, 2, ... up to an expected count of 20, and one bin for the tail. Leaving out the gaps
    # that cross a block's end favours short ones by a relative 1 / (share * BLOCK): negligible.
    bins = int(np.log(20 / (gaps.size * share)) / np.log(1 - share)) + 1
    chances = share * (1 - share) ** np.arange(bins)
    expected = gaps.size * np.append(chances, 1 - chances.sum())
    found = np.bincount(np.minimum(gaps, bins + 1), minlength=bins + 2)[1:]
    chi_square = float(((found - expected) ** 2 / expected).sum())
    # Chi-square with `bins` degrees of freedom: mean bins, variance 2 * bins (1 / count is small).
    assert abs(chi_square - bins) <= 5 * (2 * bins) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_one_survivor_says_nothing_about_its_neighbours(lag):
    kept, length = keep_threshold(0.9), 4 * BLOCK
    share, mask = kept / ONE, np.zeros(length, dtype=bool)
    mask[survivors(KEY, length, kept)] = True
    both = int((mask[lag:] & mask[:-lag]).sum())
    pairs = length - lag
    # Pairs overlap in one position: their variance is q^2 (1-q^2) + 2 q^3 (1-q) a pair.
    error = (pairs * (share**2 * (1 - share**2) + 2 * share**3 * (1 - share))) ** 0.5
    assert abs(both - pairs * share**2) <= 5 * error


def overlaps(drawn: list[np.ndarray], numel: int) -> np.ndarray:
    """The number of positions in common, for each pair of masks."""
    kept = np.zeros((len(drawn), numel), dtype=np.float32)
    for row, positions in zip(kept, drawn, strict=True):
        row[positions] = 1
    return (kept @ kept.T)[np.triu_indices(len(drawn), 1)]


CHANGES = {
    "tensor": [(1, 1, 0, f"layer.{i}") for i in range(12)],
    "anagram": [(1, 1, 0, name) for name in ("listen", "silent", "enlist", "tinsel", "inlets")],
    "round": [(1, i, 0, "w") for i in range(12)],
    "slot": [(1, 1, i, "w") for i in range(-1, 11)],
    "seed": [(i, 1, 0, "w") for i in range(12)],
    "digits that move between fields": [(1, 11, 1, "w"), (11, 1, 1, "w"), (1, 1, 11, "w")],
    "a name with the separator": [(1, 1, 0, "|w"), (1, 1, 0, "w"), (1, 1, 0, "0|w")],
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize(("p", "numel"), [(0.5, 20_003), (0.99, 400_003)])
def test_masks_are_independent_between(what, p, numel):
    kept = keep_threshold(p)
    share = kept / ONE
    drawn = [survivors(mask_key(*arguments), numel, kept) for arguments in CHANGES[what]]
    # Two independent masks have Binomial(numel, share^2) positions in common. That is skewed where
    # few are expected: Bernstein's bound adds x/3 to sqrt(2 x variance), here with x = 5^2 / 2.
    error = (numel * share**2 * (1 - share**2)) ** 0.5
    worst = np.abs(overlaps(drawn, numel) - numel * share**2).max()
    assert worst <= 5 * error + 12.5 / 3


def test_blocks_of_one_tensor_are_independent():
    kept = keep_threshold(0.9)
    share = kept / ONE
    drawn = [block_survivors(KEY, block, BLOCK, kept) for block in range(6)]
    error = (BLOCK * share**2 * (1 - share**2)) ** 0.5
    assert np.abs(overlaps(drawn, BLOCK) - BLOCK * share**2).max() <= 5 * error


# --- the threshold ----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_the_threshold_is_the_nearest_integer(p):
    exact = (1 - Fraction(p)) * ONE
    if exact <= Fraction(1, 2):
        with pytest.raises(ValueError, match=r"keeps less than 2\*\*-32"):
            keep_threshold(p)
    else:
        kept = keep_threshold(p)
        assert isinstance(kept, int)
        assert 1 <= kept <= ONE
        assert abs(kept - exact) <= Fraction(1, 2)


@settings(deadline=None)
@given(st.floats(0, 1 - 2**-32), st.floats(0, 1 - 2**-32))
def test_a_larger_p_never_keeps_more(one, other):
    low, high = sorted((one, other))
    assert keep_threshold(high) <= keep_threshold(low)


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0, ONE), (0.0, ONE), (-0.0, ONE), (1e-12, ONE), (0.5, ONE // 2), (1 - 2**-32, 1)],
)
def test_the_threshold_at_the_ends_of_the_range(p, kept):
    assert keep_threshold(p) == kept


@pytest.mark.parametrize("p", [1, 1.0, 1.5, -1e-9, -1, float("nan"), float("inf"), -float("inf")])
def test_p_outside_its_range_is_refused_with_the_range_and_the_way_out(p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got .*; to send nothing, skip"):
        keep_threshold(p)


@pytest.mark.parametrize("p", [1 - 2**-33, 1 - 2**-40, 1 - 2**-53])
def test_p_so_near_1_that_nothing_could_survive_is_refused(p):
    with pytest.raises(ValueError, match=r"keeps less than 2\*\*-32 of the entries; use a"):
        keep_threshold(p)


# --- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, *RATES])
def test_an_empty_tensor_has_no_survivors(p):
    positions = survivors(KEY, 0, keep_threshold(p))
    assert (positions.shape, positions.dtype) == ((0,), np.int64)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_a_single_entry_survives_with_the_keep_rate(p):
    kept, keys = keep_threshold(p), 5_000
    found = [survivors(mask_key(0, 0, key, "bias"), 1, kept) for key in range(keys)]
    assert all(positions.tolist() in ([], [0]) for positions in found)
    share = kept / ONE
    error = (share * (1 - share) / keys) ** 0.5
    assert abs(sum(positions.size for positions in found) / keys - share) <= 5 * error


@pytest.mark.parametrize("numel", [0, 1, 2, 1000])
def test_p_of_zero_keeps_every_entry(numel):
    assert survivors(KEY, numel, ONE).tolist() == list(range(numel))


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_lengths_around_a_block_boundary(length):
    kept = keep_threshold(0.99)
    assert survivors(KEY, length, kept).tolist() == reference(KEY, length, kept)


def test_a_longer_tensor_starts_with_the_mask_of_a_shorter_one():
    kept = keep_threshold(0.9)
    long, short = survivors(KEY, 2 * BLOCK, kept), survivors(KEY, BLOCK + 77, kept)
    assert short.tolist() == long[long < BLOCK + 77].tolist()


def test_the_shared_tables_cannot_be_changed_from_outside():
    guide, table = tables(keep_threshold(0.9))
    for array in (guide, table):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_drawing_a_mask_leaves_the_result_to_the_caller():
    kept = keep_threshold(0.9)
    first = survivors(KEY, 1000, kept)
    first[:] = -1
    assert (survivors(KEY, 1000, kept) >= 0).all()


def test_masks_use_no_global_random_state():
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    survivors(KEY, 10_000, keep_threshold(0.9))
    assert np.random.get_state()[1].tolist() == before
