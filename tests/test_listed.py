"""Listed positions: near the entropy, and nothing but sorted positions inside the tensors."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.masks import keep_threshold, survivors
from fl_darex.positions.rice import ListedPositions, rice_parameter, write_positions


def layout_of(*sizes: int) -> Layout:
    return Layout.of(
        {f"t{i:02}": np.broadcast_to(np.float32(0), (n,)) for i, n in enumerate(sizes)}
    )


def read(layout: Layout, data: bytes, count: int) -> dict[str, np.ndarray]:
    return dict(ListedPositions(layout, memoryview(data), count))


@st.composite
def position_sets(draw):
    sizes = draw(st.lists(st.integers(0, 3000), max_size=5))
    where = {}
    for index, size in enumerate(sizes):
        chosen = draw(st.sets(st.integers(0, size - 1), max_size=40)) if size else set()
        where[f"t{index:02}"] = np.array(sorted(chosen), dtype=np.int64)
    return layout_of(*sizes), where


@settings(deadline=None, max_examples=300)
@given(position_sets())
def test_what_is_listed_is_read_back(case):
    layout, where = case
    count = sum(w.size for w in where.values())
    again = ListedPositions(layout, memoryview(write_positions(layout, where)), count)
    assert {n: w.tolist() for n, w in again.items()} == {n: w.tolist() for n, w in where.items()}
    # In any order, and each alone.
    for name in reversed(list(where)):
        assert again[name].tolist() == where[name].tolist()


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 0.999])
def test_positions_take_little_more_than_their_entropy(p):
    size = 4_000_000
    positions = survivors(5, size, keep_threshold(p))
    bits = 8 * len(write_positions(layout_of(size), {"t00": positions})) / positions.size
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) / (1 - p)
    # Rice codes of geometric gaps are within 0.1 bit at any p, and the table is a few bytes.
    assert entropy - 0.1 <= bits <= entropy + 0.1


def test_each_tensor_has_a_parameter_of_its_own():
    dense, sparse = np.arange(0, 1000, 2), np.arange(0, 100_000, 1000)
    together = write_positions(layout_of(1000, 100_000), {"t00": dense, "t01": sparse})
    alone = [
        len(write_positions(layout_of(size), {"t00": where}))
        for size, where in ((1000, dense), (100_000, sparse))
    ]
    assert len(together) <= sum(alone)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_the_rice_parameter_is_the_best_one(gaps):
    array = np.array(gaps, dtype=np.int64)

    def bits(k: int) -> int:
        return array.size * (k + 1) + int((array >> k).sum())

    # The rule looks at three; the best of all is at most a tenth better.
    assert bits(rice_parameter(array)) <= 1.1 * min(bits(k) for k in range(15)) + 3


def test_a_listing_never_changes():
    where = {"t00": np.array([2]), "t01": np.array([0, 400, 401, 999])}
    data = write_positions(layout_of(5, 1000), where)
    # Counts 1 and 4 with parameters 0 and 7: gaps 2 | 0, 399 = 3 * 128 + 15, 0, 597 = 4 * 128 + 85.
    # Unary, the low bit first: 001 | 1, 0001, 1, 00001; then seven bits each of 0, 15, 0, 85.
    assert data.hex() == "0100" + "0407" + "8c21" + "8007a00a"


# --- strangers ----------------------------------------------------------------------------------

LAYOUT = layout_of(5, 1000)
WHERE = {"t00": np.array([2]), "t01": np.array([0, 400, 401, 999])}
DATA = write_positions(LAYOUT, WHERE)


def refused(data: bytes, count: int = 5, match: str = "the packet ") -> None:
    with pytest.raises(PacketError, match=match) as caught:
        read(LAYOUT, data, count)
    assert caught.value.reason == Reason.POSITIONS


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (DATA[:-1], "another number of gaps|too short|too long"),
        (DATA + b"\0", "too long|another number|lists"),
        (b"", "damaged table"),
        (b"\x01", "lists 1 positions of 't00'"),
        (b"\x06\x00" + DATA[2:], "lists 6 positions of 't00', which has 5 entries"),
        (b"\x01\x03" + DATA[2:], "parameter 3 for 't00', too large"),
        (b"\x01\xff" + DATA[2:], "the Rice parameter 255"),
        (b"\x81\x00\x00" + DATA[2:], "damaged table"),  # 1 written in two bytes
        (b"\xff" * 20, "damaged table|lists"),
        (bytes.fromhex("01000407" + "8c20" + "8007a00a"), "another number of gaps"),
        (bytes.fromhex("01000407" + "8c2100" + "8007a00a"), "too long"),
        (bytes.fromhex("01000407" + "8c41" + "8007a00a"), "lists position 1127 of 't01'"),
        (bytes.fromhex("01000407" + "8c21" + "8007e00f"), "lists position 1041 of 't01'"),
        (bytes.fromhex("01000407" + "8c21" + "8007a01a"), "bits set that mean nothing"),
    ],
)
def test_a_damaged_listing_is_refused(data, match):
    refused(data, match=match)


@pytest.mark.parametrize("count", [0, 4, 6, 1005])
def test_another_number_of_positions_than_announced_is_refused(count):
    refused(DATA, count, match=f"lists 5 positions, its header says {count}")


def test_more_positions_than_entries_are_refused():
    refused(DATA, 1006, match="the tensors have 1005 entries")


def test_bits_that_mean_nothing_must_be_zero():
    layout = layout_of(1000)
    data = bytearray(write_positions(layout, {"t00": np.array([10, 100, 300])}))
    data[-1] |= 0x80
    with pytest.raises(PacketError, match="bits set that mean nothing"):
        read(layout, bytes(data), 3)


def test_a_long_listing_is_refused_before_it_is_unpacked():
    data = bytes(50_000_000)
    tracemalloc.start()
    refused(data, match="in 50000000 bytes; the tensors have 1005 entries")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=60), st.integers(0, 1100))
def test_any_bytes_are_refused_or_sorted_positions_inside_the_tensors(data, count):
    try:
        where = read(LAYOUT, data, count)
    except PacketError as error:
        assert error.reason == Reason.POSITIONS
        return
    assert sum(w.size for w in where.values()) == count
    for name, size in (("t00", 5), ("t01", 1000)):
        assert (np.diff(where[name]) > 0).all()
        assert not where[name].size or 0 <= where[name][0] <= where[name][-1] < size


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_is_refused_or_gives_other_positions_inside(bit):
    data = bytearray(DATA)
    data[bit // 8] ^= 1 << bit % 8
    try:
        where = read(LAYOUT, bytes(data), 5)
    except PacketError:
        return
    assert any(where[name].tolist() != WHERE[name].tolist() for name in WHERE)
    assert where["t01"].max(initial=0) < 1000
