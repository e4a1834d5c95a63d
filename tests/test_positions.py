"""Where survivors are: whole tensors and single blocks agree, for every kind of mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.delta import Delta, Layout
from fl_darex.masks import BLOCK, ONE, exact_survivors, keep_threshold, survivors
from fl_darex.positions import Blocks, ListedMask, SeededMask, UnionMask
from fl_darex.pruning import dare

SIZES = {"a": 3, "b": 0, "big": 2 * BLOCK + 5, "c": BLOCK, "d": 700}
LAYOUT = Layout.of({name: np.broadcast_to(np.float32(0), (n,)) for name, n in SIZES.items()})
PLAIN = SeededMask(5, 3, 2, keep_threshold(0.9))
EXACT = SeededMask(5, 3, 2, keep_threshold(0.9), exact=True)
UNION = UnionMask(tuple(SeededMask(5, 3, slot, keep_threshold(0.99)) for slot in (0, 2, 7)))
LISTED = ListedMask({name: np.arange(0, n, 7) for name, n in SIZES.items()})
DISJOINT = SeededMask(5, 3, 2, keep_threshold(0.9), disjoint=True)
MASKS = {"plain": PLAIN, "exact": EXACT, "disjoint": DISJOINT, "union": UNION, "listed": LISTED}


def test_blocks_cover_every_pruned_entry_once_and_in_order():
    blocks = Blocks.of(LAYOUT)
    assert [spec.name for spec in blocks.specs] == sorted(SIZES)
    assert blocks.length.sum() == sum(SIZES.values())
    assert (blocks.offset == np.cumsum(blocks.length) - blocks.length).all()
    assert blocks.number.tolist() == [0, 0, 1, 2, 0, 0]
    assert blocks.first.tolist() == [0, 0, BLOCK, 2 * BLOCK, 0, 0]
    assert [blocks.specs[t].name for t in blocks.tensor] == ["a", "big", "big", "big", "c", "d"]


def test_a_layout_without_pruned_tensors_has_no_blocks_and_no_positions():
    layout = Layout.of({"n": np.arange(3)})
    assert Blocks.of(layout).length.size == 0
    assert PLAIN.in_layout(layout) == {}


@pytest.mark.parametrize("which", MASKS)
def test_blocks_drawn_alone_are_parts_of_the_whole(which):
    mask, blocks = MASKS[which], Blocks.of(LAYOUT)
    whole = mask.in_layout(LAYOUT)
    for row in (5, 3, 0, 2, 1, 4):
        one = blocks.rows(row, row + 1)
        (alone,) = mask.in_blocks(one, one.first)
        first, end = int(one.first[0]), int(one.first[0] + one.length[0])
        mine = whole[blocks.specs[int(one.tensor[0])].name]
        assert alone.tolist() == mine[(mine >= first) & (mine < end)].tolist()


@pytest.mark.parametrize("which", MASKS)
def test_positions_are_counted_from_where_it_is_asked(which):
    blocks = Blocks.of(LAYOUT)
    for here, there in zip(
        MASKS[which].in_blocks(blocks, blocks.offset),
        MASKS[which].in_blocks(blocks, np.zeros_like(blocks.offset)),
        strict=True,
    ):
        assert np.unique(here - there).size <= 1
    flat = np.concatenate(MASKS[which].in_blocks(blocks, blocks.offset))
    assert (np.diff(flat) > 0).all()


def test_a_seeded_mask_is_that_of_each_tensor():
    for mask, draw in ((PLAIN, survivors), (EXACT, exact_survivors)):
        for name, positions in mask.in_layout(LAYOUT).items():
            expected = draw(mask.key(name), SIZES[name], mask.keep)
            assert positions.tolist() == expected.tolist()


def test_a_union_has_what_any_of_its_members_has():
    members = [member.in_layout(LAYOUT) for member in UNION.members]
    for name, positions in UNION.in_layout(LAYOUT).items():
        expected = set().union(*(set(member[name].tolist()) for member in members))
        assert positions.tolist() == sorted(expected)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text(max_size=4), st.integers(0, 900), max_size=5),
    st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    st.booleans(),
)
def test_every_small_tensor_has_the_positions_of_its_own_name_and_size(sizes, p, exact):
    layout = Layout.of({name: np.zeros(size, np.float32) for name, size in sizes.items()})
    mask = SeededMask(1, 2, 3, keep_threshold(p), exact)
    draw = exact_survivors if exact else survivors
    found = mask.in_layout(layout)
    assert list(found) == sorted(sizes)
    for name, size in sizes.items():
        assert found[name].tolist() == draw(mask.key(name), size, mask.keep).tolist()


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))],
)
def test_a_delta_on_an_accelerator_gives_the_same_survivors(device):
    values = np.random.default_rng(0).normal(size=SIZES["big"]).astype(np.float32)
    here = dare({"w": values}, 0.99, seed=3)
    there = dare({"w": torch.from_numpy(values).to(device)}, 0.99, seed=3)
    assert there.numbers.tobytes() == here.numbers.tobytes()
    assert there.positions["w"].tolist() == here.positions["w"].tolist()


def test_positions_drawn_by_torch_give_the_same_survivors(monkeypatch):
    # What happens on an accelerator, on the CPU.
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    here = dare({"w": values, "v": values[:50]}, 0.9, seed=3)
    monkeypatch.setattr(Delta, "accelerator", lambda self, name: torch.device("cpu"))
    there = dare({"w": values, "v": values[:50]}, 0.9, seed=3)
    assert there.numbers.tobytes() == here.numbers.tobytes()
    assert there.counts == here.counts


def test_a_mask_that_keeps_all_needs_no_draws():
    mask = SeededMask(0, 0, 0, ONE)
    assert all(
        positions.tolist() == list(range(SIZES[name]))
        for name, positions in mask.in_layout(LAYOUT).items()
    )
