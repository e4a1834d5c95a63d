"""Structured pruning: few columns, unbiased, any block alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.delta import Delta, Layout
from fl_darex.masks import BLOCK, ONE, keep_threshold
from fl_darex.positions import Blocks, SeededMask, StructuredMask
from fl_darex.pruning import dare, structured
from fl_darex.rescaling import rescale
from fl_darex.wire import encode
from fl_darex.wire.reader import read_packet


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_survivors_lie_in_the_columns_that_are_kept():
    delta = {"w": gaussian(400, 300), "conv": gaussian(50, 4, 5, 5), "bias": gaussian(10_000)}
    kept = structured(delta, 0.99, seed=3)
    for name, width in (("w", 300), ("conv", 100)):
        columns = np.unique(kept.positions[name] % width)
        assert columns.size in (width // 20, width // 20 + 1)
    # b = 1 % / 5 % = 20 % of the entries in 15 columns of 400 rows.
    inside = 400 * np.unique(kept.positions["w"] % 300).size
    assert abs(kept.positions["w"].size - 0.2 * inside) < 5 * (inside * 0.2 * 0.8) ** 0.5
    assert kept.positions["bias"].tolist() == dare(delta, 0.99, seed=3).positions["bias"].tolist()


def test_each_tensor_round_and_client_has_its_own_columns():
    def columns(name: str, **options: int) -> list[int]:
        kept = structured({name: gaussian(50, 400)}, 0.95, 0.1, seed=1, **options)
        return np.unique(kept.positions[name] % 400).tolist()

    first = columns("a")
    others = [columns("b"), columns("a", round_=1), columns("a", slot=1)]
    # Of 40 columns 4 are shared by chance, with a standard error of 1.8.
    assert all(len(set(first) & set(other)) < 4 + 5 * 1.8 for other in others)
    assert columns("a") == first


@pytest.mark.parametrize("exact", [False, True])
def test_q_of_one_minus_p_is_unbiased(exact):
    delta, draws, p = gaussian(6, 20), 4000, 0.9
    total = np.zeros(delta.shape)
    for seed in range(draws):
        total += structured({"w": delta}, p, 0.3, seed=seed, exact=exact).rescaled()["w"]
    error = np.abs(delta) * (p / (1 - p) / draws) ** 0.5
    assert (np.abs(total / draws - delta) <= 5 * error).all()


def test_exact_counts_hold_for_columns_and_entries():
    kept = structured({"w": gaussian(200, 400)}, 0.99, 0.05, seed=5, exact=True)
    columns = np.unique(kept.positions["w"] % 400)
    assert columns.size == 20 and kept.count in (800, 801)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 9), st.integers(1, 40_000), st.integers(0, 99), st.booleans(), st.floats(0, 1)
)
def test_any_block_alone_gives_the_same_survivors(rows, width, seed, exact, share):
    kept = keep_threshold(0.9)
    drawn = SeededMask(seed, 2, 1, kept, exact)
    mask = StructuredMask(drawn, kept + round(share * (ONE - kept)))
    layout = Layout.of({"w": np.zeros((rows, width), np.float32), "z": np.zeros(7, np.float32)})
    whole, blocks = mask.in_layout(layout), Blocks.of(layout)
    for row in range(blocks.length.size):
        one = blocks.rows(row, row + 1)
        (alone,) = mask.in_blocks(one, one.first)
        positions = whole[blocks.specs[int(one.tensor[0])].name]
        inside = positions[(positions >= one.first[0]) & (positions < one.first[0] + one.length[0])]
        np.testing.assert_array_equal(alone, inside)
        assert (np.diff(alone) > 0).all()
    assert {name: where.tolist() for name, where in mask.by_tensor(layout)} == {
        name: where.tolist() for name, where in whole.items()
    }


def test_a_tensor_of_many_blocks_keeps_its_rate():
    layout = Layout.of({"w": np.zeros((3000, 500), np.float32)})
    assert layout.specs[0].numel > 5 * BLOCK
    mask = StructuredMask(SeededMask(1, 2, 3, keep_threshold(0.99)), keep_threshold(0.9))
    found = mask.in_layout(layout)["w"]
    columns = np.unique(found % 500)
    assert columns.size == 50
    assert abs(found.size - 15_000) < 5 * (150_000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (0,), (1,), ()])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9999])
def test_odd_shapes_are_pruned_too(shape, p):
    kept = structured({"w": np.ones(shape, np.float32)}, p, max(0.05, 1 - p), seed=1)
    assert kept.count <= int(np.prod(shape))
    if p == 0.0:
        assert kept.count == int(np.prod(shape))


def test_a_packet_tells_the_columns_in_eight_bytes():
    update = rescale(
        structured({"w": gaussian(100, 100), "b": gaussian(30)}, 0.9, 0.2, seed=9), 0.3
    )
    packet = encode(update, "fp32")
    assert len(packet) == 96 + 8 + 4 * update.count
    again = read_packet(packet, update.layout)
    assert again.mask == update.mask and again.q == 0.3
    full, expected = again.survivors().rescaled(), update.rescaled()
    assert all(full[name].tobytes() == expected[name].tobytes() for name in expected)


def test_all_columns_keep_as_many_entries_as_dare():
    delta = Delta({"w": gaussian(300, 300)})
    kept = structured(delta, 0.9, 1.0, seed=4)
    assert np.unique(kept.positions["w"] % 300).size == 300
    assert abs(kept.count - 9000) < 5 * (90_000 * 0.09) ** 0.5


def test_too_few_columns_are_refused():
    with pytest.raises(ValueError, match=r"columns must be in \[1-p, 1\] = \[0.1, 1\], got 0.05"):
        structured({"w": gaussian(3, 3)}, 0.9, 0.05, seed=1)
    with pytest.raises(ValueError, match=r"got 1.5"):
        structured({"w": gaussian(3, 3)}, 0.9, 1.5, seed=1)
    with pytest.raises(ValueError, match="keep threshold of columns"):
        StructuredMask(SeededMask(1, 1, 1, ONE // 2), ONE // 4)
