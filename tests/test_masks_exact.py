"""The exact-count masks: the right number, every choice equally likely, any block alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.masks import (
    BLOCK,
    ONE,
    draw_exact,
    exact_survivors,
    keep_threshold,
    mask_key,
    streams,
    survivors,
)
from fl_darex.masks.keys import GOLDEN

KEY = 0x7E0A39886D826C1C
KEYS = st.integers(0, 2**64 - 1)
RATES = [0.1, 0.5, 0.9, 0.99, 0.999, 0.9999]


def digest(positions: np.ndarray) -> str:
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:32]


@pytest.mark.parametrize(
    ("p", "count", "first", "sha"),
    [
        (0.5, 131572, [0, 2, 4], "06d4dca76fdb677e36fab14972b21d66"),
        (0.9, 26314, [4, 15, 25], "ead6d20d931b79ac8edfea616e8cd50b"),
        (0.99, 2631, [48, 157, 257], "79be7d8a3e92508e079bb03f7a5686c2"),
        (0.999, 263, [485, 2569, 3758], "c52a6435cd4be0126c156847ea0e3e2a"),
    ],
)
def test_exact_masks_never_change_across_a_block_boundary(p, count, first, sha):
    positions = exact_survivors(KEY, BLOCK + 1000, keep_threshold(p))
    assert (positions.size, positions[:3].tolist()) == (count, first)
    assert digest(positions) == sha


# --- a second implementation: plain Python, every correction one at a time ----------------------


def finalize(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def reference(key: int, numel: int, kept: int) -> list[int]:
    if kept == ONE:
        return list(range(numel))
    offset = finalize(key) % 2**32
    plain = survivors(key, numel, kept)
    found: list[int] = []
    for block, start in enumerate(range(0, numel, BLOCK)):
        end = min(start + BLOCK, numel)
        count = (end * kept + offset >> 32) - (start * kept + offset >> 32)
        mine = [x for x in plain.tolist() if start <= x < end]
        stream = finalize((key + (block + 1) * GOLDEN) % 2**64)

        def number(index: int, below: int, stream: int = stream) -> int:
            output = finalize((stream + (2**31 + index // 2) * GOLDEN) % 2**64)
            return (output >> 32 if index % 2 else output % 2**32) * below >> 32

        surplus = len(mine) - count
        pool = mine if surplus > 0 else [x for x in range(start, end) if x not in set(mine)]
        chosen: set[int] = set()
        for index in range(abs(surplus)):
            top = len(pool) - abs(surplus) + index
            picked = number(index, top + 1)
            chosen.add(top if picked in chosen else picked)
        moved = {pool[rank] for rank in chosen}
        found += sorted(set(mine) - moved if surplus > 0 else set(mine) | moved)
    return found


@settings(deadline=None, max_examples=150)
@given(KEYS, st.integers(0, 3000), st.sampled_from([0.0, 0.05, 0.3, 0.7, 0.95, 0.998]))
def test_exact_masks_are_those_of_the_plain_reference_for_any_key(key, numel, p):
    kept = keep_threshold(p)
    assert exact_survivors(key, numel, kept).tolist() == reference(key, numel, kept)


@pytest.mark.parametrize("p", [0.9, 0.999])
def test_exact_masks_are_those_of_the_plain_reference_across_a_block_boundary(p):
    kept = keep_threshold(p)
    assert exact_survivors(KEY, BLOCK + 999, kept).tolist() == reference(KEY, BLOCK + 999, kept)


@settings(deadline=None, max_examples=60)
@given(KEYS, st.integers(0, 3 * BLOCK), st.sampled_from(RATES))
def test_the_number_of_survivors_is_the_share_rounded_up_or_down(key, numel, p):
    kept = keep_threshold(p)
    positions = exact_survivors(key, numel, kept)
    assert positions.size in (numel * kept // ONE, numel * kept // ONE + 1)
    assert (np.diff(positions) > 0).all()
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < numel)


@pytest.mark.parametrize(("p", "numel"), [(0.9, 5), (0.5, 7), (0.99, 50), (0.7, 41)])
def test_every_position_of_a_small_tensor_is_kept_with_the_keep_rate(p, numel):
    kept, keys = keep_threshold(p), 20_000
    times, sizes = np.zeros(numel), np.zeros(keys)
    for key in range(keys):
        positions = exact_survivors(mask_key(0, 1, key, "bias"), numel, kept)
        times[positions] += 1
        sizes[key] = positions.size
    share = kept / ONE
    assert np.abs(times / keys - share).max() <= 5 * (share * (1 - share) / keys) ** 0.5
    part = numel * share % 1  # the chance of rounding up
    assert abs(sizes.mean() - numel * share) <= 5 * (part * (1 - part) / keys) ** 0.5 + 1e-9


def test_pairs_of_positions_are_kept_together_as_often_as_in_a_random_set_of_that_size():
    numel, count, keys = 12, 4, 30_000
    kept = ONE * count // numel + 1
    together = np.zeros((numel, numel))
    for key in range(keys):
        mask = np.zeros(numel)
        mask[exact_survivors(mask_key(1, 0, key, "w"), numel, kept)] = 1
        together += np.outer(mask, mask)
    pairs = together[np.triu_indices(numel, 1)] / keys
    chance = count * (count - 1) / (numel * (numel - 1))
    assert np.abs(pairs - chance).max() <= 5 * (chance * (1 - chance) / keys) ** 0.5


@pytest.mark.parametrize("p", RATES)
def test_any_block_can_be_drawn_alone(p):
    kept, numel = keep_threshold(p), 3 * BLOCK + 12345
    whole = exact_survivors(KEY, numel, kept)
    for block in (3, 0, 2, 1):
        start, end = block * BLOCK, min((block + 1) * BLOCK, numel)
        key = np.array([KEY], np.uint64)
        one = np.array([start])
        (alone,) = draw_exact(
            key, streams(key, np.array([block], np.uint64)), one, one, np.array([end - start]), kept
        )
        assert alone.tolist() == whole[(whole >= start) & (whole < end)].tolist()


def test_an_exact_mask_differs_little_from_the_independent_one():
    kept, numel = keep_threshold(0.9), BLOCK
    one, other = survivors(KEY, numel, kept), exact_survivors(KEY, numel, kept)
    changed = np.setxor1d(one, other).size
    assert changed == abs(one.size - other.size)
    assert changed <= 5 * (numel * 0.09) ** 0.5
