"""Masks side by side: no entry in two of them, and each alone is a mask like any other."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.delta import Layout
from fl_darex.errors import PacketError
from fl_darex.masks import (
    BLOCK,
    ONE,
    disjoint_key,
    disjoint_survivors,
    draw_disjoint,
    fitting,
    keep_threshold,
    places,
    streams,
)
from fl_darex.positions import SeededMask, StructuredMask, UnionMask, united

RATES = [0.0, 0.1, 0.5, 0.7, 0.9, 0.99, 0.999]


def kept_at(p: float) -> int:
    return fitting(keep_threshold(p))


def mask(slot: int, numel: int, kept: int, seed: int = 7, name: str = "w") -> np.ndarray:
    return disjoint_survivors(disjoint_key(seed, 3, slot, kept, name), slot, numel, kept)


def masks_of_rounds(slot: int, numel: int, kept: int, rounds: int) -> list[np.ndarray]:
    """A small tensor's masks in many rounds, drawn in one go."""
    found = [disjoint_key(0, round_, slot, kept, "w") for round_ in range(rounds)]
    keys, zeros = np.array(found, np.uint64), np.zeros(rounds, np.int64)
    stream = streams(keys, np.zeros(rounds, np.uint64))
    return draw_disjoint(keys, stream, zeros, zeros, np.full(rounds, numel), slot, kept)


def digest(positions: np.ndarray) -> str:
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:32]


# --- literals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "slot", "key", "count", "first", "sha"),
    [
        (0.5, 2, 0x28349639F96C1145, 131572, [0, 1, 7], "fe526657aca80fb5497db9bfe1b7ebf8"),
        (0.5, 12, 0x9C8FE46FFB04425A, 131572, [0, 1, 6], "413b1adbddc3fcce6092f5b9c1594960"),
        (0.9, 2, 0x9714C850025BFF0B, 26315, [4, 8, 23], "c4dfb0cf991c875d0543f8f9e88ab2ac"),
        (0.9, 12, 0x28349639F96C1145, 26315, [13, 17, 32], "632dddf5c58c90389f29ce26e3973d35"),
        (0.99, 12, 0x9714C850025BFF0B, 2632, [20, 151, 173], "210e8ab05d24760a755417bbf7776003"),
        (0.999, 2, 0x9714C850025BFF0B, 263, [317, 797, 1778], "245e28142d18bb14c337ab0ae83ecea4"),
    ],
)
def test_disjoint_masks_never_change_across_a_block_boundary(p, slot, key, count, first, sha):
    assert disjoint_key(7, 3, slot, kept_at(p), "w") == key
    positions = mask(slot, BLOCK + 1000, kept_at(p))
    assert (positions.size, positions[:3].tolist()) == (count, first)
    assert digest(positions) == sha


def test_disjoint_masks_of_small_tensors_never_change():
    found = {n: [mask(s, n, ONE // 4, name="bias").tolist() for s in range(4)] for n in (1, 5, 9)}
    assert found == {
        1: [[0], [], [], []],
        5: [[1, 2], [4], [0], [3]],
        9: [[2, 4, 7], [3, 6], [0, 8], [1, 5]],
    }


# --- what a group is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "many"), [(0.0, 1), (0.3, 1), (0.5, 2), (0.9, 10), (0.99, 100), (0.998, 500)]
)
def test_as_many_masks_fit_side_by_side_as_their_shares_do(p, many):
    kept = kept_at(p)
    assert places(kept) == many
    assert keep_threshold(p) - kept in (0, 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, ONE))
def test_a_threshold_gives_way_by_one_unit_at_most_and_only_for_one_place_more(kept):
    other = fitting(kept)
    assert other == kept or (other == kept - 1 and places(other) > places(kept))
    assert places(kept) * kept <= ONE < (places(kept) + 1) * kept


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**62), st.integers(0, 3000), st.sampled_from(RATES), st.integers(0, 5))
def test_slots_of_one_group_share_no_entry_and_each_keeps_its_share(seed, numel, p, group):
    kept = kept_at(p)
    many = places(kept)
    some = sorted({*range(min(many, 30)), many - 1})
    all_of_them = [mask(group * many + place, numel, kept, seed) for place in some]
    flat = np.concatenate(all_of_them)
    assert np.unique(flat).size == flat.size <= numel
    for positions in all_of_them:
        assert positions.size in (numel * kept // ONE, numel * kept // ONE + 1)
        assert (np.diff(positions) > 0).all()
        assert not positions.size or (0 <= positions[0] and positions[-1] < numel)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9, 0.99])
def test_slots_of_one_group_share_no_entry_in_tensors_of_many_blocks(p):
    kept, numel = kept_at(p), 2 * BLOCK + 12345
    found = [mask(place, numel, kept) for place in range(places(kept))]
    flat = np.concatenate(found)
    assert np.unique(flat).size == flat.size
    # Where shares fill the whole, so do the masks: but for what rounding keeps back.
    assert numel - flat.size <= numel * (1 - places(kept) * kept / ONE) + places(kept)


def test_slots_of_different_groups_meet_as_often_as_independent_masks_do():
    kept, numel = kept_at(0.9), 50_000
    met = [
        np.intersect1d(mask(place, numel, kept, seed), mask(10 + other, numel, kept, seed)).size
        for seed in range(10)
        for place, other in itertools.product((0, 3, 9), (0, 3, 9))
    ]
    expected = numel * (kept / ONE) ** 2
    assert abs(np.mean(met) - expected) <= 5 * (expected / len(met)) ** 0.5


# --- each mask alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "numel", "slot"), [(0.9, 5, 3), (0.5, 7, 1), (0.99, 50, 99)])
def test_every_entry_of_a_small_tensor_is_kept_with_the_keep_rate(p, numel, slot):
    kept, rounds = kept_at(p), 20_000
    times, sizes = np.zeros(numel), np.zeros(rounds)
    for round_, positions in enumerate(masks_of_rounds(slot, numel, kept, rounds)):
        times[positions] += 1
        sizes[round_] = positions.size
    share = kept / ONE
    assert np.abs(times / rounds - share).max() <= 5 * (share * (1 - share) / rounds) ** 0.5
    part = numel * share % 1  # the chance of rounding up
    assert abs(sizes.mean() - numel * share) <= 5 * (part * (1 - part) / rounds) ** 0.5 + 1e-9


@pytest.mark.parametrize("numel", [5, 8, 12, 21])
def test_pairs_of_entries_are_kept_together_as_often_as_in_a_random_set_of_that_size(numel):
    kept, rounds = ONE // 4, 20_000
    together, pairs = np.zeros((numel, numel)), 0.0
    for positions in masks_of_rounds(1, numel, kept, rounds):
        kept_here = np.zeros(numel)
        kept_here[positions] = 1
        together += np.outer(kept_here, kept_here)
        pairs += kept_here.sum() * (kept_here.sum() - 1) / (numel * (numel - 1))
    found, chance = together[np.triu_indices(numel, 1)] / rounds, pairs / rounds
    assert np.abs(found - chance).max() <= 5 * (chance * (1 - chance) / rounds) ** 0.5


@pytest.mark.parametrize("stride", [1, 512])
def test_rows_and_columns_of_a_block_hold_as_many_survivors_as_in_a_random_set(stride):
    # 512 entries in a row, or one of each row: what a weak permutation would keep together.
    kept, blocks = kept_at(0.99), 60
    counts = []
    for seed in range(blocks):
        flags = np.zeros(BLOCK)
        flags[mask(seed % 100, BLOCK, kept, seed)] = 1
        counts.append(flags.reshape(512, 512).sum(axis=1 if stride == 1 else 0))
    found = np.var(np.stack(counts))
    share = kept / ONE
    expected = 512 * share * (1 - share) * (1 - 512 / BLOCK)
    assert abs(found / expected - 1) <= 5 * (2 / (blocks * 512)) ** 0.5


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
def test_any_block_can_be_drawn_alone(p):
    kept, numel, slot = kept_at(p), 3 * BLOCK + 12345, 1
    whole, key = mask(slot, numel, kept), disjoint_key(7, 3, slot, kept, "w")
    for block in (3, 0, 2, 1):
        start, end = block * BLOCK, min((block + 1) * BLOCK, numel)
        keys, one = np.array([key], np.uint64), np.array([start])
        stream = streams(keys, np.array([block], np.uint64))
        (alone,) = draw_disjoint(keys, stream, one, one, np.array([end - start]), slot, kept)
        assert alone.tolist() == whole[(whole >= start) & (whole < end)].tolist()


# --- in packets -----------------------------------------------------------------------------------

GENERATOR = "splitmix64-disjoint"
LAYOUT = Layout.of({"a": np.zeros(40, np.float32), "b": np.zeros((30, 50), np.float32)})


def seeded(slot: int, kept: int = ONE // 4) -> SeededMask:
    return SeededMask(7, 3, slot, kept, disjoint=True)


def test_a_disjoint_mask_is_that_of_each_tensor_and_its_count_is_exact():
    one = seeded(5)
    assert one.exact and one == SeededMask(7, 3, 5, ONE // 4, exact=True, disjoint=True)
    for spec in LAYOUT.pruned:
        expected = disjoint_survivors(one.key(spec.name), 5, spec.numel, ONE // 4)
        assert one.in_layout(LAYOUT)[spec.name].tolist() == expected.tolist()
    fewest, most = one.bounds(LAYOUT)
    assert fewest <= sum(at.size for at in one.in_layout(LAYOUT).values()) <= most


def test_the_union_of_disjoint_masks_has_what_any_of_them_has():
    members = tuple(map(seeded, (0, 2, 4)))
    union = united(members)
    assert isinstance(union, UnionMask)
    assert union.fields.generator == GENERATOR
    again = UnionMask.read(union.fields, memoryview(union.section(LAYOUT)), LAYOUT, 0)
    assert again == union
    for spec in LAYOUT.pruned:
        expected = set().union(*(one.in_layout(LAYOUT)[spec.name].tolist() for one in members))
        assert union.in_layout(LAYOUT)[spec.name].tolist() == sorted(expected)


def test_structured_pruning_refuses_disjoint_masks():
    fields = replace(StructuredMask(SeededMask(7, 3, 1, 5), 9).fields, generator=GENERATOR)
    with pytest.raises(PacketError, match="draws disjoint masks in columns"):
        StructuredMask.read(fields, memoryview(bytes([9] + [0] * 7)), LAYOUT, 0)
    with pytest.raises(ValueError, match="disjoint masks are drawn entry by entry"):
        StructuredMask(seeded(1), ONE // 2)
