"""Packet v1: literal bytes, every flipped bit, and bytes from strangers."""

from __future__ import annotations

import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import (
    ALL_GOLDEN,
    DISJOINT,
    EXACT,
    FINGERPRINT,
    FIXED,
    GOLDEN,
    GOLDEN_DISJOINT,
    GOLDEN_EXACT,
    GOLDEN_FIXED,
    GOLDEN_LISTED,
    GOLDEN_STRUCTURED,
    GOLDEN_UNION,
    HEADER,
    LAYOUT,
    LISTED,
    MASK,
    POSITIONS,
    ROTATED,
    STRUCTURED,
    TENSORS,
    UNION,
    forge,
    seal,
    take_apart,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.compression import METHODS, Uplink
from fl_darex.compression.terms import Terms
from fl_darex.config import load_config
from fl_darex.delta import Delta, Layout
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.masks import ONE, keep_threshold
from fl_darex.positions import Mask, StructuredMask
from fl_darex.pruning import dare
from fl_darex.pruning.gather import gather
from fl_darex.rescaling import rescale
from fl_darex.survivors import Survivors
from fl_darex.wire import decode, encode
from fl_darex.wire.codings import CODINGS, dense_size
from fl_darex.wire.header import HEADER_BYTES
from fl_darex.wire.reader import read_packet

WIDTHS = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2}
BITS = {"int8": 8, "int4": 4, "sign": 1, "qsgd8": 8, "qsgd4": 4, "qsgd2": 2}
"""Beside a scale for each block."""


def small() -> Survivors:
    return dare(TENSORS, 0.5, seed=7, round_=3, slot=2)


def read(
    packet: bytes,
    layout: Layout = LAYOUT,
    mask: Mask = MASK,
    q: float | None = 0.5,
    values: str = "fp32",
    base: bytes = bytes(8),
) -> Survivors:
    return decode(packet, layout, mask, q=q, values=values, base=base)


def pruned_by(mask: Mask, q: Any = 1.0) -> Survivors:
    return gather(Delta(TENSORS), mask, q)


@pytest.mark.parametrize("values", [*GOLDEN, *ROTATED])
def test_golden_packets_never_change(values):
    assert encode(small(), values).hex() == ALL_GOLDEN[values].hex()


def test_golden_packets_are_read_as_written():
    full = read(GOLDEN["fp32"])
    assert {name: where.tolist() for name, where in full.positions.items()} == POSITIONS
    assert full.values["bias"].tolist() == [0.75]
    assert full.values["weight"].tolist() == [1.0, 3.0, np.float32(0.001)]
    assert full.dense["bn.running_var"].tolist() == [0.125, -0.5]
    steps = full.raw["steps"]
    assert (steps.shape, steps.dtype, int(steps)) == ((), np.int64, 258)
    assert (full.q, full.mask, full.layout) == (0.5, MASK, LAYOUT)
    half = read(GOLDEN["fp16"], values="fp16")
    third = float(np.float16(0.001 * 2**13)) / 2**13
    assert half.values["weight"].tolist() == [1.0, 3.0, third]
    assert half.dense["bn.running_var"].tolist() == [0.125, -0.5]


def test_golden_packets_of_the_narrow_codings_are_read_as_written():
    kept = {values: read(GOLDEN[values], values=values).numbers.tolist() for values in GOLDEN}
    assert kept["bf16"] == [0.75, 1.0, 3.0, 0.00099945068359375]
    assert kept["int8"] == [0.023681640625 * code for code in (32, 42, 127, 0)]
    assert kept["int4"] == [0.4296875 * code for code in (2, 2, 7, 0)]
    assert kept["sign"] == [1.1953125] * 4
    assert kept["qsgd8"] == [0.025634765625 * code for code in (29, 39, 117, 0)]
    assert kept["qsgd4"] == [0.46484375 * code for code in (2, 2, 6, 0)]
    assert kept["qsgd2"] == [0.0, 0.0, 3.265625, 0.0]
    assert kept["lookup2"] == [0.875, 0.875, 3.0, 0.00099945068359375]
    for values in ("bf16", "int8", "int4", "sign", "qsgd8", "qsgd4", "qsgd2", "lookup2"):
        again = read(GOLDEN[values], values=values)
        assert again.dense["bn.running_var"].tolist() == [0.125, -0.5]
        assert int(again.raw["steps"]) == 258


def test_golden_packets_of_other_masks_never_change():
    assert encode(pruned_by(LISTED), "fp32").hex() == GOLDEN_LISTED.hex()
    assert encode(pruned_by(UNION), "fp32").hex() == GOLDEN_UNION.hex()
    two = pruned_by(EXACT, np.array([0.5, 0.75], np.float32))
    assert encode(two, "fp32", base=bytes(range(1, 9))).hex() == GOLDEN_EXACT.hex()
    assert encode(pruned_by(STRUCTURED, 0.5), "fp32").hex() == GOLDEN_STRUCTURED.hex()
    assert encode(pruned_by(FIXED, 0.5), "fp32").hex() == GOLDEN_FIXED.hex()
    assert encode(pruned_by(DISJOINT, 0.5), "fp32").hex() == GOLDEN_DISJOINT.hex()


def test_golden_packets_of_other_masks_are_read_as_written():
    listed = read(GOLDEN_LISTED, mask=replace(LISTED, where={}), q=1.0)
    assert {n: w.tolist() for n, w in listed.positions.items()} == {
        "bias": [2],
        "weight": [0, 4, 5],
    }
    assert listed.values["weight"].tolist() == [1.0, -5.0, 6.0]
    union = read(GOLDEN_UNION, mask=UNION, q=1.0)
    assert {n: w.tolist() for n, w in union.positions.items()} == {
        "bias": [1, 2],
        "weight": [0, 1, 5],
    }
    exact = read(GOLDEN_EXACT, mask=EXACT, q=None, base=bytes(range(1, 9)))
    assert [exact.q_of(0), exact.q_of(1)] == [0.5, 0.75]
    full = exact.rescaled()
    assert full["bias"].tolist() == [0.0, 0.0, 1.5]
    assert full["weight"].reshape(-1).tolist()[:3] == [np.float32(1 / 0.75), 0.0, 4.0]
    fixed = read(GOLDEN_FIXED, mask=FIXED, q=0.5)
    assert fixed.positions["weight"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(PacketError, match="the packet's round is 3, expected 4"):
        read(GOLDEN_FIXED, mask=replace(FIXED, round=4), q=0.5)  # a replay, of the same mask
    apart = read(GOLDEN_DISJOINT, mask=DISJOINT, q=0.5)
    assert {n: w.tolist() for n, w in apart.positions.items()} == {"bias": [1], "weight": [4, 5]}
    columns = read(GOLDEN_STRUCTURED, mask=STRUCTURED, q=0.5)
    assert {n: w.tolist() for n, w in columns.positions.items()} == {
        "bias": [2],
        "weight": [0, 2, 3, 5],
    }


def test_shares_of_columns_that_make_no_sense_are_refused():
    body = take_apart(GOLDEN_STRUCTURED)[1]
    for section in (ONE // 4, ONE + 1, 2**64 - 1):
        odd = forge(GOLDEN_STRUCTURED, body=section.to_bytes(8, "little") + body[8:])
        with pytest.raises(PacketError, match="keeps columns by"):
            read_packet(odd, LAYOUT)
    with pytest.raises(PacketError, match="keeps columns by"):
        read_packet(forge(GOLDEN_STRUCTURED, body=body[8:], positions=0), LAYOUT)
    other = StructuredMask(STRUCTURED.drawn, ONE)
    with pytest.raises(PacketError, match="the packet's share of columns is"):
        read(GOLDEN_STRUCTURED, mask=other, q=0.5)


def test_the_header_has_96_bytes_and_the_packet_nothing_else():
    assert HEADER_BYTES == HEADER.size + 4 == 96
    assert len(GOLDEN["fp64"]) == 96 + 8 * (4 + 2) + 8
    assert len(GOLDEN["fp32"]) == 96 + 4 * (4 + 2) + 8
    assert len(GOLDEN["fp16"]) == 96 + 2 * (4 + 2) + 8
    assert len(GOLDEN["int8"]) == 96 + (2 + 4) + 2 * 2 + 8
    assert len(GOLDEN["int4"]) == 96 + (2 + 2) + 2 * 2 + 8
    assert len(GOLDEN["sign"]) == 96 + (2 + 1) + 2 * 2 + 8
    assert len(GOLDEN["qsgd8"]) == 96 + (2 + 4) + 2 * 2 + 8
    assert len(GOLDEN["qsgd4"]) == 96 + (2 + 2) + 2 * 2 + 8
    assert len(GOLDEN["qsgd2"]) == 96 + (2 + 1) + 2 * 2 + 8
    assert len(GOLDEN["lookup2"]) == 96 + (8 + 1) + 2 * 2 + 8


# --- decode inverts encode --------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["bn.running_mean", "running_var", "a.weight"]
)
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
# Up to 2**90, and q from 1e-9: what comes near float32's end has a test of its own.
RAW = st.sampled_from([np.bool_, np.int8, np.uint8, np.int16, np.int64, np.uint64])
ARRAYS = st.one_of(
    npst.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**90), 2.0**90, width=32)),
    npst.arrays(np.float16, SHAPES, elements=st.floats(-6e4, 6e4, width=16)),
    npst.arrays(np.float64, SHAPES, elements=st.floats(-(2.0**90), 2.0**90)),
    RAW.flatmap(lambda dtype: npst.arrays(dtype, SHAPES)),
)


@st.composite
def updates(draw: Callable[[Any], Any], dtype: Any = np.float32) -> Survivors:
    tensors = draw(st.dictionaries(NAMES, ARRAYS, max_size=5))
    dense = draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    pruned = dare(
        Delta(tensors, dense=dense, dtype=dtype),
        draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999])),
        seed=draw(st.integers(0, 2**63 - 1)),
        round_=draw(st.integers(0, 2**40)),
        slot=draw(st.integers(-1, 2**40)),
        exact=draw(st.booleans()),
    )
    return rescale(pruned, draw(st.just("dare") | st.floats(1e-9, 1)))


def reread(update: Survivors, values: str) -> Survivors:
    packet = encode(update, values)
    return decode(packet, update.layout, update.mask, q=update.q, values=values)


@settings(deadline=None)
@given(updates() | updates(np.float64))
def test_decode_inverts_encode_bit_for_bit_in_fp32_and_fp64(update):
    again = reread(update, f"fp{8 * update.numbers.dtype.itemsize}")
    assert (again.layout, again.mask, again.q) == (update.layout, update.mask, update.q)
    for kind in ("positions", "values", "dense", "raw"):
        mine, theirs = getattr(update, kind), getattr(again, kind)
        assert set(mine) == set(theirs)
        for name in mine:
            assert (mine[name].dtype, mine[name].shape) == (theirs[name].dtype, theirs[name].shape)
            assert mine[name].tobytes() == theirs[name].tobytes()


@settings(deadline=None)
@given(updates())
def test_fp16_is_within_half_an_ulp_of_the_shared_exponent(update):
    again = reread(update, "fp16")
    fields = take_apart(encode(update, "fp16"))[0]
    kinds = {
        "exponent": (update.values, again.values),
        "dense_exponent": (update.dense, again.dense),
    }
    for field, (mine, theirs) in kinds.items():
        check_fp16(fields[field], list(mine.values()), list(theirs.values()))
    for name, raw in update.raw.items():
        assert raw.tobytes() == again.raw[name].tobytes()


def check_fp16(exponent: int, sent: list[np.ndarray], read: list[np.ndarray]) -> None:
    largest = max([0.0, *(float(np.abs(v).max(initial=0)) for v in sent)])
    assert -128 <= exponent <= 127
    if largest:
        # 2**15 is out of reach, and no power of two is given away where the range allows it.
        assert largest * 2.0**exponent <= 2**15
        assert largest * 2.0**exponent >= 2**14 or exponent == 127
    for mine, theirs in zip(sent, read, strict=True):
        scaled = np.abs(mine.astype(np.float64)) * 2.0**exponent
        ulp = np.maximum(2.0**-24, 2.0 ** (np.floor(np.log2(np.maximum(scaled, 1e-99))) - 10))
        # Below 2**-126 float32 itself has steps of 2**-149.
        bound = ulp / 2 / 2.0**exponent + (2.0**-150 if exponent == 127 else 0)
        assert (np.abs(theirs.astype(np.float64) - mine) <= bound).all()


def numbers(update: Survivors) -> list[np.ndarray]:
    return [*update.values.values(), *update.dense.values()]


@settings(deadline=None)
@given(updates(), st.sampled_from(sorted(CODINGS)))
def test_the_same_update_has_the_same_bytes_and_its_size_follows_from_the_counts(update, values):
    packet = encode(update, values)
    assert encode(update, values) == packet
    fields, body = take_apart(packet)
    assert fields["survivors"] == update.count
    dense = sum(v.size for v in update.dense.values())
    raw = sum(v.nbytes for v in update.raw.values())
    kept = CODINGS[values].size(update.count)
    whole = WIDTHS.get(values, 2) * dense
    if values.startswith("eden"):
        whole = dense_size(values, update.layout.dense)
        filled, size = -(-update.count // 64) * 64, int(values[-1])
        assert kept == (filled and 8 + 2 * filled.bit_count() + filled * size // 8)
    assert len(body) == kept + whole + raw
    if values in WIDTHS:
        assert kept == WIDTHS[values] * update.count
    elif values == "lookup2":
        assert kept == 8 * -(-update.count // 4096) + -(-2 * update.count // 8)
    elif not values.startswith("eden"):
        bits, scales = BITS[values], -(-update.count // 256)
        assert kept == 2 * scales + -(-bits * update.count // 8)


@pytest.mark.parametrize("size", [1e-9, 1e6, 1e-30, 1e30])
def test_tiny_and_huge_deltas_survive_fp16(size):
    values = (np.random.default_rng(0).uniform(0.1, 1, 1000) * size).astype(np.float32)
    update = dare({"w": values}, 0.5, seed=0)
    again = reread(update, "fp16").values["w"]
    # 11 bits: half an ulp is at most 2**-11 of a number; all are within 1/10 of the largest.
    assert (np.abs(again / update.values["w"] - 1) <= 2**-11).all()


def test_pruned_and_dense_tensors_have_an_exponent_each():
    tensors = {"body": np.full(4, 1e-3, np.float32), "head": np.full(2, 40000.0)}
    update = dare(Delta(tensors, dense=["head"]), 0.0, seed=0)
    assert reread(update, "fp16").dense["head"].tolist() == [40000.0, 40000.0]
    fields = take_apart(encode(update, "fp16"))[0]
    # 1e-3 * 2**24 = 16777.2 and 40000 / 2 = 20000 lie below 2**15, twice them do not.
    assert (fields["exponent"], fields["dense_exponent"]) == (24, -1)


def test_one_huge_dense_number_does_not_spoil_the_pruned_ones():
    # A running variance can move by 1e6 where weights move by 1e-6: float16 has 2**30 in all.
    tensors = {"w": np.full(4, 1e-6, np.float32), "bn.running_var": np.array([1e6])}
    again = reread(dare(tensors, 0.0, seed=0), "fp16").values["w"]
    assert (np.abs(again / np.float32(1e-6) - 1) <= 2**-10).all()


@pytest.mark.parametrize("values", CODINGS)
def test_a_packet_of_nothing_is_a_header(values):
    for delta in ({}, {"w": np.zeros(0, np.float32)}):
        update = dare(delta, 0.9, seed=0)
        assert len(encode(update, values)) == 96
        assert reread(update, values).count == 0


@settings(deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.floats(1e-30, 1),
    st.booleans(),
    st.sampled_from(sorted(CODINGS)),
)
@example([float(np.finfo(np.float32).max)], 1.0, False, "fp16")  # would be rounded up to 2**128
@example([float(np.finfo(np.float32).max)], 1.0, True, "fp16")
@example([3e38, 1.0], 0.01, False, "fp32")  # infinite once divided by q
@example([3e38, 1.0], 0.01, False, "fp64")  # infinite in the model's float32
@example([float(np.finfo(np.float32).max)], 1.0, False, "bf16")
@example([float(np.finfo(np.float32).max)], 1.0, False, "int8")
@example([float(np.finfo(np.float32).max)] * 2, 1.0, False, "sign")
def test_what_the_encoder_writes_the_decoder_reads_as_finite_numbers(numbers_, q, dense, values):
    delta = Delta({"w": np.array(numbers_, np.float32)}, dense=["w"] if dense else [])
    update = rescale(dare(delta, 0.0, seed=0), q)
    try:
        packet = encode(update, values)
    except DeltaError as error:
        assert np.abs(numbers_).max() / (1 if dense else q) > 2.0**125
        assert "infinite" in str(error)
        return
    again = decode(packet, update.layout, update.mask, q=q, values=values)
    assert np.isfinite(again.rescaled()["w"]).all()


@pytest.mark.parametrize("sign", [0.0, -0.0])
@pytest.mark.parametrize("values", ["fp64", "fp32", "fp16", "bf16", "sign"])
def test_an_update_of_zeros_keeps_their_sign(sign, values):
    update = dare({"w": np.full(5, sign, np.float32)}, 0.0, seed=0)
    assert np.signbit(reread(update, values).values["w"]).tolist() == [bool(np.signbit(sign))] * 5


# --- NaN and infinity -------------------------------------------------------------------------


@pytest.mark.parametrize("values", CODINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dense", [(), ("w",)])
def test_nan_and_infinity_are_not_sent(values, bad, dense):
    weights = np.array([1.0, bad, 2.0], np.float32)
    with pytest.raises(DeltaError, match="NaN or infinite values; training has diverged"):
        encode(dare(Delta({"w": weights}, dense=dense), 0.0, seed=0), values)


def doubles(*numbers_: float, dense: bool = False) -> Survivors:
    """The update of a model in float64, at p = 0."""
    delta = Delta({"w": np.array(numbers_)}, dense=["w"] * dense, dtype=np.float64)
    return dare(delta, 0.0, seed=0)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("number", [1e300, 5e-324, -(2.0**-60), 1 / 3])
def test_a_float64_model_sends_every_float64_number_in_fp64(number, dense):
    update = doubles(number, 1.0, dense=dense)
    again = reread(update, "fp64")
    assert again.rescaled()["w"].dtype == np.float64
    assert again.rescaled()["w"].tolist() == [number, 1.0]


@pytest.mark.parametrize("values", sorted({*CODINGS} - {"fp64"}))
@pytest.mark.parametrize("dense", [False, True])
def test_numbers_that_only_float64_has_are_refused_by_all_other_codings(values, dense):
    with pytest.raises(DeltaError, match="NaN or infinite values"):
        encode(doubles(1e300, dense=dense), values)


@pytest.mark.parametrize("dense", [False, True])
def test_numbers_that_only_float64_has_are_refused_where_a_tensor_is_float32(dense):
    tuned, base = {"w": np.array([1e300])}, {"w": np.zeros(1, np.float32)}
    delta = Delta(tuned, base, ["w"] * dense, dtype=np.float64)
    with pytest.raises(DeltaError, match=r"holds 1e\+300, which is infinite in float32"):
        encode(dare(delta, 0.0, seed=0), "fp64")


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_float64_delta_that_float32_cannot_hold_is_not_sent():
    with pytest.raises(DeltaError, match="NaN or infinite"):
        encode(dare({"w": np.array([1e300])}, 0.0, seed=0))


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        *[("fp64", struct.pack("<d", x)) for x in (np.nan, np.inf, -np.inf)],
        *[("fp32", struct.pack("<f", x)) for x in (np.nan, np.inf, -np.inf)],
        *[("fp16", struct.pack("<e", x)) for x in (np.nan, np.inf, -np.inf)],
        *[("bf16", bits) for bits in (b"\x80\x7f", b"\x80\xff", b"\xc1\x7f")],
        ("fp32", b"\x01\x00\x80\x7f"),  # a signalling NaN
        ("fp64", b"\x01\x00\x00\x00\x00\x00\xf0\x7f"),
    ],
)
@pytest.mark.parametrize("where", [0, 1, 3])
def test_nan_and_infinity_in_a_packet_are_refused(values, bad, where):
    fields, body = take_apart(GOLDEN[values])
    body = body[: where * len(bad)] + bad + body[(where + 1) * len(bad) :]
    with pytest.raises(PacketError, match="NaN or infinite") as caught:
        read(seal(fields, body), values=values)
    assert caught.value.reason == Reason.VALUES


@pytest.mark.parametrize("exponent", [-128, -120])
def test_an_exponent_that_makes_a_number_infinite_is_refused(exponent):
    packet = forge(GOLDEN["fp16"], exponent=exponent)
    with pytest.raises(PacketError, match="NaN or infinite"):
        read(packet, values="fp16")


@pytest.mark.parametrize("field", ["exponent", "dense_exponent"])
@pytest.mark.parametrize("exponent", [-128, -1, 1, 5, 127])
@pytest.mark.parametrize("values", ["fp64", "fp32"])
def test_an_exponent_in_an_fp64_or_fp32_packet_is_refused(field, exponent, values):
    with pytest.raises(PacketError, match=f"exponent is {exponent}, allowed: 0 to 0"):
        read(forge(GOLDEN[values], **{field: exponent}), values=values)


@pytest.mark.parametrize(
    "values", ["bf16", "int8", "int4", "sign", "qsgd8", "qsgd4", "qsgd2", "lookup2"]
)
def test_an_exponent_where_the_coding_has_none_is_refused(values):
    with pytest.raises(PacketError, match="exponent is 3, allowed: 0 to 0"):
        read(forge(GOLDEN[values], exponent=3), values=values)


@pytest.mark.parametrize("values", ["int8", "int4", "sign", "qsgd8", "qsgd4", "qsgd2"])
@pytest.mark.parametrize("scale", [b"\x80\x7f", b"\xc0\x7f", b"\x00\x80", b"\x80\xbf", b"\xff\xff"])
def test_a_scale_that_is_no_number_above_zero_is_refused(values, scale):
    body = scale + take_apart(GOLDEN[values])[1][2:]
    with pytest.raises(PacketError, match="a scale that is no number above 0"):
        read(forge(GOLDEN[values], body=body), values=values)


@pytest.mark.parametrize("number", [b"\x80\x7f", b"\xc0\x7f", b"\x80\xff", b"\xff\xff"])
def test_a_number_of_a_table_that_is_not_finite_is_refused(number):
    body = take_apart(GOLDEN["lookup2"])[1]
    for at in (0, 6):  # also where no code chooses it
        odd = forge(GOLDEN["lookup2"], body=body[:at] + number + body[at + 2 :])
        with pytest.raises(PacketError, match="NaN or infinite"):
            read(odd, values="lookup2")


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        *[(name, b"\x00\x80\x00\x00") for name in ("int8", "qsgd8")],
        *[(name, b"\x80\x00") for name in ("int4", "qsgd4")],
        ("qsgd2", b"\x80"),
    ],
)
def test_the_lowest_code_which_no_encoder_writes_is_refused(values, codes):
    old = take_apart(GOLDEN[values])[1]
    body = old[:2] + codes + old[2 + len(codes) :]
    with pytest.raises(PacketError, match="holds a code below -"):
        read(forge(GOLDEN[values], body=body), values=values)


@pytest.mark.parametrize(
    ("values", "bits"),
    [("int4", 0x10), ("sign", 0x08), ("qsgd4", 0x10), ("qsgd2", 0x40), ("lookup2", 0x40)],
)
def test_bits_that_mean_nothing_must_be_zero(values, bits):
    update = dare({"w": np.ones(3, np.float32)}, 0.0, seed=0)
    packet = encode(update, values)
    body = bytearray(take_apart(packet)[1])
    body[-1] |= bits
    with pytest.raises(PacketError, match="bits set that mean nothing"):
        decode(forge(packet, body=bytes(body)), update.layout, update.mask, q=1.0, values=values)


@pytest.mark.parametrize("values", ["int8", "sign"])
def test_a_scale_that_makes_numbers_infinite_is_refused(values):
    update = dare({"w": np.ones(400, np.float32)}, 0.9, seed=0)
    packet = encode(update, values)
    body = b"\x7f\x7f" + take_apart(packet)[1][2:]  # 3.39e38
    with pytest.raises(PacketError, match="infinite"):
        decode(forge(packet, body=body), update.layout, update.mask, q=update.q, values=values)


def test_an_fp64_packet_of_another_size_is_refused():
    fields, body = take_apart(GOLDEN["fp64"])
    for cut in (body[:-1], body[8:], body + bytes(4), body[:24] + body[28:]):
        with pytest.raises(PacketError, match="bytes, its header says") as caught:
            read(seal(fields, cut), values="fp64")
        assert caught.value.reason == Reason.SIZE


@pytest.mark.parametrize("number", [1e300, -1.7e308])
def test_an_fp64_packet_with_more_than_a_float32_model_can_hold_is_refused(number):
    fields, body = take_apart(GOLDEN["fp64"])
    for at in (0, 4):  # a survivor, a dense number
        forged = body[: 8 * at] + struct.pack("<d", number) + body[8 * at + 8 :]
        with pytest.raises(PacketError, match="NaN or infinite") as caught:
            read(seal(fields, forged), values="fp64")
        assert caught.value.reason == Reason.VALUES


def test_an_fp64_number_that_is_infinite_once_divided_by_q_is_refused():
    update = replace(doubles(1e308, 1.0), q=0.01)
    with pytest.raises(DeltaError, match=r"holds 1e\+308, which is infinite in float64 once div"):
        encode(update, "fp64")
    packet = encode(replace(update, numbers=np.ones(2)), "fp64")
    packet = forge(packet, body=struct.pack("<2d", 1e308, 1))
    with pytest.raises(PacketError, match="infinite once divided by q"):
        decode(packet, update.layout, update.mask, q=0.01, values="fp64")


@pytest.mark.parametrize(("values", "number"), [("fp32", "<f"), ("fp16", "<e")])
def test_values_that_are_infinite_once_divided_by_q_are_refused(values, number):
    # Finite themselves: 3e38, or 60000 * 2**112 = 3.1e38 by the exponent.
    update = dare({"w": np.ones(400, np.float32)}, 0.99, seed=0)
    body = struct.pack(number, 3e38 if values == "fp32" else 6e4) * update.count
    exponent = {"fp32": 0, "fp16": -112}[values]
    packet = forge(encode(update, values), body=body, exponent=exponent)
    with pytest.raises(PacketError, match="infinite once divided by q"):
        decode(packet, update.layout, update.mask, q=update.q, values=values)
    assert update.count > 0


def test_a_raw_byte_that_is_no_bool_is_refused_or_made_one():
    update = dare({"flags": np.array([True, False])}, 0.0, seed=0)
    packet = forge(encode(update), body=b"\x07\x00")
    try:
        flags = decode(packet, update.layout, update.mask, q=1.0, values="fp16").raw["flags"]
    except PacketError:
        return
    assert flags.view(np.uint8).tolist() == [1, 0]


# --- damage -----------------------------------------------------------------------------------

DAMAGED = "checksum does not match|not a fl-darex packet|unknown packet version"


@pytest.mark.parametrize("which", ALL_GOLDEN)
def test_every_flipped_bit_is_refused(which):
    packet = ALL_GOLDEN[which]
    for bit in range(8 * len(packet)):
        damaged = bytearray(packet)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError, match=DAMAGED):
            read_packet(bytes(damaged), LAYOUT)


@pytest.mark.parametrize("which", ALL_GOLDEN)
def test_a_packet_cut_short_anywhere_is_refused(which):
    packet = ALL_GOLDEN[which]
    for length in range(len(packet)):
        message = "a header alone 96" if length < 96 else "checksum"
        with pytest.raises(PacketError, match=message) as caught:
            read_packet(packet[:length], LAYOUT)
        assert caught.value.reason in (Reason.SIZE, Reason.CHECKSUM)


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 1000, b"DARX", GOLDEN["fp32"]])
def test_padding_is_refused(padding):
    with pytest.raises(PacketError, match="checksum"):
        read(GOLDEN["fp32"] + padding)


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 1000, b"DARX", b" "])
def test_a_packet_that_starts_late_is_refused(padding):
    with pytest.raises(PacketError, match=DAMAGED):
        read(padding + GOLDEN["fp32"])


@pytest.mark.parametrize("change", [1, -1, 1000, -8])
def test_a_body_of_another_length_is_refused_even_with_a_right_checksum(change):
    fields, body = take_apart(GOLDEN["fp32"])
    longer = body + b"\0" * change if change > 0 else body[:change]
    with pytest.raises(PacketError, match=r"has \d+ bytes, its header says \d+"):
        read(seal(fields, longer))


@pytest.mark.parametrize(("one", "other"), [(96, 100), (100, 112), (8, 16), (104, 108)])
def test_numbers_that_change_places_are_refused(one, other):
    packet = bytearray(GOLDEN["fp32"])
    packet[one : one + 4], packet[other : other + 4] = (
        packet[other : other + 4],
        packet[one : one + 4],
    )
    with pytest.raises(PacketError, match="checksum"):
        read(bytes(packet))


# --- a sound packet that is not the one expected ----------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"darx"}, r"starts with b'darx', not b'DARX'"),
        ({"magic": b"\x93NUM"}, "not a fl-darex packet"),
        ({"version": 0}, "unknown packet version 0; this receiver knows 1"),
        ({"version": 2}, "unknown packet version 2; this receiver knows 1"),
        (
            {"mask_kind": 0},
            r"unknown mask kind 0; this receiver knows seeded \(1\), listed \(2\), union",
        ),
        ({"mask_kind": 2}, "the packet's mask kind is 'listed', expected 'seeded'"),
        ({"mask_kind": 9}, "unknown mask kind 9"),
        (
            {"rng": 7},
            r"unknown random generator 7; this receiver knows none \(0\), splitmix64 \(1\)",
        ),
        ({"rng": 0}, "the packet's random generator is 'none', expected 'splitmix64'"),
        ({"rng": 2}, "the packet's random generator is 'splitmix64-exact', expected 'splitmix64'"),
        ({"rng": 3}, "the packet's random generator is 'splitmix64-fixed', expected 'splitmix64'"),
        ({"rng": 5}, "random generator is 'splitmix64-disjoint', expected 'splitmix64'"),
        ({"coding": 1}, "the packet's value coding is 'fp16', expected 'fp32'"),
        ({"coding": 255}, "the packet's value coding is 255, expected 'fp32'"),
        ({"seed": 8}, "the packet's seed is 8, expected 7"),
        ({"round": 4}, "the packet's round is 4, expected 3"),
        ({"slot": -1}, "the packet's slot is -1, expected 2"),
        ({"keep": ONE // 2 + 1}, "the packet's keep threshold is 2147483649, expected 2147483648"),
        ({"q": 0.25}, "the packet's q is 0.25, expected 0.5"),
        ({"q": float("nan")}, "the packet's q is nan, expected 0.5"),
        ({"q": 0.0}, "the packet's q is 0.0, expected 0.5"),
        ({"q_count": 0}, "the packet's count of q is 0, expected 1"),
        ({"q_count": 2}, "the packet's count of q is 2, expected 1"),
        ({"fingerprint": bytes(16)}, f"layout fingerprint is '0{{32}}', expected '{FINGERPRINT}'"),
        ({"base": b"12345678"}, "the packet's base version is '3132333435363738', expected '0000"),
        ({"survivors": 3}, r"has \d+ bytes, its header says"),
        ({"survivors": 5}, r"has \d+ bytes, its header says"),
        ({"survivors": 10}, "the packet has 10 survivors, the layout 9 entries"),
        ({"positions": 8}, r"has \d+ bytes, its header says"),
    ],
)
def test_a_field_that_is_not_expected_is_refused_by_name(changes, message):
    with pytest.raises(PacketError, match=message):
        read(forge(GOLDEN["fp32"], **changes))


@pytest.mark.parametrize(
    ("expected", "field"),
    [
        ({"mask": replace(MASK, seed=8)}, "seed"),
        ({"mask": replace(MASK, round=4)}, "round"),
        ({"mask": replace(MASK, slot=1)}, "slot"),
        ({"mask": replace(MASK, keep=keep_threshold(0.9))}, "keep threshold"),
        ({"q": 0.5000000001}, "q"),
        ({"values": "fp16"}, "value coding"),
        ({"base": b"12345678"}, "base version"),
        ({"mask": EXACT}, "random generator"),
        ({"mask": LISTED}, "mask kind"),
        ({"mask": UNION}, "mask kind"),
        ({"layout": Layout.of({**TENSORS, "extra": np.ones(1)})}, "layout fingerprint"),
        ({"layout": Layout.of(TENSORS, dense=["bias"])}, "layout fingerprint"),
        ({"layout": Layout.of({**TENSORS, "bias": np.ones(3)})}, "layout fingerprint"),
        ({"layout": Layout(())}, "layout fingerprint"),
    ],
)
def test_a_packet_for_another_receiver_is_refused_by_name(expected, field):
    with pytest.raises(PacketError, match=f"the packet's {field} is "):
        read(GOLDEN["fp32"], **expected)


def test_messages_of_refused_packets_are_one_short_line():
    layout = Layout.of({f"layer.{i}.weight": np.ones(3) for i in range(1000)})
    for packet, expected in [
        (b"\n" * 200, {}),
        (bytes(range(256)), {}),
        (GOLDEN["fp32"], {"layout": layout}),
    ]:
        with pytest.raises(PacketError, match=r".+") as caught:
            read(packet, **expected)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


# --- bytes from strangers ---------------------------------------------------------------------


@pytest.mark.parametrize("field", ["survivors", "positions"])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**40, 10**9])
def test_a_huge_count_allocates_nothing(field, count):
    packet = forge(GOLDEN["fp32"], **{field: count})
    tracemalloc.start()
    with pytest.raises(PacketError, match=r"survivors|its header says"):
        read(packet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_counts_that_only_add_up_are_refused():
    # One survivor less and its four bytes in the positions section.
    packet = forge(GOLDEN["fp32"], survivors=3, positions=4)
    with pytest.raises(PacketError, match="lists positions although they follow from its seed"):
        read(packet)
    fields, body = take_apart(GOLDEN["fp32"])
    with pytest.raises(PacketError, match="the packet has 3 survivors, the mask 4") as caught:
        read(seal(fields | {"survivors": 3}, body[4:]))
    assert caught.value.reason == Reason.POSITIONS


def refused_or_golden(packet: bytes, values: str) -> None:
    """A stranger's bytes are refused with PacketError, or they are an acceptable packet."""
    try:
        update = read(packet, values=values)
    except PacketError:
        return
    fields, body = take_apart(packet)
    assert len(packet) == len(GOLDEN[values])
    assert {name: where.tolist() for name, where in update.positions.items()} == POSITIONS
    assert all(np.isfinite(array).all() for array in numbers(update))
    assert fields["dense_exponent"] == 0 or values != "fp32"
    free = {"exponent": 0, "dense_exponent": 0}
    assert fields | free == take_apart(GOLDEN[values])[0] | free
    assert len(body) == len(GOLDEN[values]) - 96


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.sampled_from(["fp32", "fp16"]))
@example(b"", "fp32")
@example(b"DARX", "fp32")
@example(b"DARX" + bytes(92), "fp32")
@example(b"DARX\x01" + bytes(91), "fp16")
def test_arbitrary_bytes_raise_nothing_but_packet_errors(data, values):
    refused_or_golden(data, values)


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=87, max_size=300), st.sampled_from(["fp32", "fp16"]))
def test_arbitrary_bytes_with_a_sound_frame_raise_nothing_but_packet_errors(data, values):
    head = b"DARX\x01" + data[:87]
    packet = head + struct.pack("<I", zlib.crc32(head + data[87:])) + data[87:]
    refused_or_golden(packet, values)


WRONG = {
    "mask_kind": st.integers(0, 255),
    "rng": st.integers(0, 255),
    "coding": st.integers(0, 255),
    "seed": st.integers(0, 2**64 - 1),
    "round": st.integers(0, 2**64 - 1),
    "slot": st.integers(-(2**63), 2**63 - 1),
    "keep": st.integers(0, 2**64 - 1),
    "q": st.floats(),
    "exponent": st.integers(-128, 127),
    "dense_exponent": st.integers(-128, 127),
    "q_count": st.integers(0, 2**16 - 1),
    "fingerprint": st.binary(min_size=16, max_size=16),
    "survivors": st.integers(0, 2**64 - 1),
    "base": st.binary(min_size=8, max_size=8),
    "positions": st.integers(0, 2**64 - 1),
}


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries({}, optional=WRONG),
    st.none() | st.binary(max_size=80),
    st.sampled_from(["fp32", "fp16"]),
)
def test_any_header_with_a_right_checksum_raises_nothing_but_packet_errors(changes, body, values):
    refused_or_golden(forge(GOLDEN[values], body=body, **changes), values)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_any_body_with_a_right_checksum_is_finite_or_refused(body):
    refused_or_golden(forge(GOLDEN["fp32"], body=body), "fp32")


@pytest.mark.parametrize("values", GOLDEN)
def test_what_was_read_does_not_share_memory_with_the_packet(values):
    buffer = bytearray(GOLDEN[values])
    packet = bytes(buffer)
    update = read(packet, values=values)
    source = np.frombuffer(packet, np.uint8)
    for array in (*numbers(update), *update.raw.values()):
        assert not np.shares_memory(array, source)
        array[...] = 9  # writable
    assert packet == bytes(buffer) == GOLDEN[values]


@pytest.mark.parametrize("values", GOLDEN)
def test_encoding_leaves_the_survivors_alone(values):
    update = small()
    before = [array.tobytes() for array in (*numbers(update), *update.raw.values())]
    encode(update, values)
    assert [a.tobytes() for a in (*numbers(update), *update.raw.values())] == before


def test_reading_leaves_other_readings_of_the_packet_alone():
    one, other = read(GOLDEN["fp32"]), read(GOLDEN["fp32"])
    one.values["weight"][:] = 0
    one.positions["weight"][:] = 0
    assert other.values["weight"].tolist() == [1.0, 3.0, np.float32(0.001)]
    assert read(GOLDEN["fp32"]).positions["weight"].tolist() == POSITIONS["weight"]


def test_an_unknown_coding_is_refused_when_writing():
    with pytest.raises(ValueError, match=r"values must be one of \['bf16', 'eden1'.*, got 'int5'"):
        encode(small(), "int5")


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("seed", 2**64), ("round_", -1)])
def test_a_seed_or_round_that_a_packet_cannot_carry_is_refused_with_a_message(key, value):
    with pytest.raises(ValueError, match=key.strip("_")):
        encode(dare(TENSORS, 0.5, **{"seed": 0, key: value}))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_nan_where_the_model_has_integers_is_not_sent():
    delta = Delta({"n": np.array([np.nan])}, {"n": np.array([1])})
    with pytest.raises(DeltaError, match="NaN"):
        encode(dare(delta, 0.5, seed=0))


CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = {path.stem: load_config(path).compress for path in sorted(CONFIGS.glob("*.toml"))}


@pytest.mark.parametrize("preset", [n for n, c in PRESETS.items() if c.method == "dare"])
def test_a_packet_is_smaller_than_the_dense_tensors_at_every_shipped_config(preset):
    compress = PRESETS[preset]
    model = {"weight": np.ones((300, 700), np.float32), "bias": np.ones(700, np.float32)}
    packet = encode(dare(model, compress.p, seed=0), compress.values)
    entries, coding = 300 * 700 + 700, CODINGS[compress.values]
    # Survivors are Binomial(entries, q).
    q = 1 - compress.p
    error = coding.bits / 8 * (entries * q * (1 - q)) ** 0.5
    assert abs(len(packet) - 96 - coding.size(round(entries * q))) <= 5 * error
    assert len(packet) < 4 * entries


TERMS = Terms(uplink=Uplink(method="dare", keep=ONE // 2, seed=7), round=3, slot=2)

# --- methods ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dare", "dense"])
def test_a_method_reads_what_it_writes(method):
    uplink = replace(TERMS.uplink, method=method, q=0.7, values="fp32")
    terms = replace(TERMS, uplink=uplink)
    packet, state = METHODS[method].compress(Delta(TENSORS), terms)
    assert state == {}
    if packet is None:
        assert method == "dense"
        return
    update = METHODS[method].open(packet, LAYOUT, terms)
    assert update.q == 0.7
    before = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
    expected = rescale(small(), 0.7).rescaled()
    full = update.values(before)
    assert {name: full[name].tobytes() for name in full} == {
        name: expected[name].tobytes() for name in expected
    }


def test_a_packet_in_a_dense_round_is_refused():
    with pytest.raises(PacketError, match="asked for dense replies"):
        METHODS["dense"].open(GOLDEN["fp32"], LAYOUT, TERMS)


def test_an_unknown_method_is_refused_with_the_nearest_one():
    known = sorted(METHODS)
    message = re.escape(f"method must be one of {known}, got 'dara'; did you mean 'dare'?")
    with pytest.raises(ValueError, match=message):
        Uplink(method="dara", keep=ONE)


@pytest.mark.parametrize(
    "wrong", [replace(TERMS, uplink=replace(TERMS.uplink, q=0.75)), replace(TERMS, round=4)]
)
def test_a_server_only_accepts_a_packet_on_its_own_terms(wrong):
    packet, _ = METHODS["dare"].compress(Delta(TENSORS), wrong)
    assert packet is not None
    with pytest.raises(PacketError, match=r"the packet's (q|round) is"):
        METHODS["dare"].open(packet, LAYOUT, TERMS)
