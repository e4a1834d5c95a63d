"""Packet v1: the bytes of one client's update.

All numbers are little-endian. A fixed header, then three runs of numbers in the layout's
canonical order (tensors sorted by name), without names, positions or gaps between tensors::

    header      96 bytes, see `_HEADER`
    survivors  count x width       unscaled, tensor after tensor
    dense      dense count x width whole deltas
    raw        raw bytes           new values of tensors that are not floating point

Positions are never sent: the receiver draws them from its own copy of seed, round and slot. The
decoder is the only parser of bytes from strangers: it compares every field with what it expects
and knows every size before it allocates anything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import DeltaError, PacketError
from fl_darex.survivors import SeededMask, Survivors, seeded_positions
from fl_darex.wire.values import CODINGS, Coding

MAGIC = b"DARX"
VERSION = 1
METHOD_DARE = 1
RNG_SPLITMIX64 = 1

# magic, version, method, RNG, value coding | seed, round, slot, keep threshold | q, exponents of
# survivors and of dense numbers, count of q | layout fingerprint | counts: survivors, dense
# numbers, raw bytes | CRC-32
_HEADER = struct.Struct("<4sBBBBQQqQdbbH16sQQQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size


def encode(survivors: Survivors, values: str = "fp16") -> bytes:
    """Write survivors as one packet.

    Args:
        survivors: What pruning left; the mask must be seeded.
        values: Coding of the numbers: ``"fp32"`` or ``"fp16"``.

    Raises:
        ValueError: If ``values`` is unknown.
        DeltaError: If a number is NaN or infinite; training has diverged.
    """
    if values not in CODINGS:
        raise ValueError(f"values must be one of {sorted(CODINGS)}, got {values!r}")
    coding, layout = CODINGS[values], survivors.layout
    kept = _joined(survivors.values[spec.name] for spec in layout.pruned)
    dense = _joined(survivors.dense[spec.name] for spec in layout.dense)
    raw = b"".join(_raw_bytes(survivors.raw[spec.name]) for spec in layout.raw)
    # One exponent each: a running variance may move a million times as far as a weight.
    exponent, dense_exponent = _exponent(kept, survivors.q, coding), _exponent(dense, 1.0, coding)
    mask = survivors.mask
    fields = (
        *(MAGIC, VERSION, METHOD_DARE, RNG_SPLITMIX64, coding.code),
        *(mask.seed, mask.round, mask.slot, mask.kept),
        *(survivors.q, exponent, dense_exponent, 1, layout.fingerprint),
        *(kept.size, dense.size, len(raw)),
    )
    body = coding.write(kept, exponent) + coding.write(dense, dense_exponent) + raw
    head = _HEADER.pack(*fields, 0)[: -_CHECKSUM.size]
    return head + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(head))) + body


def decode(packet: bytes, layout: Layout, mask: SeededMask, *, q: float, values: str) -> Survivors:
    """Read a packet against what the receiver expects.

    Args:
        packet: Bytes from a stranger.
        layout: The receiver's own layout.
        mask: The mask that this client was told to use in this round.
        q: The q that this client was told to use.
        values: The value coding that this client was told to use.

    Raises:
        PacketError: If the packet is damaged, or is not exactly what was expected; the message
            says which field.
    """
    coding = CODINGS[values]
    _check_frame(packet)
    *head, exponent, dense_exponent, q_count, fingerprint, kept, dense, raw, _ = (
        _HEADER.unpack_from(packet)
    )
    expected = {
        "method": (head[2], METHOD_DARE),
        "RNG": (head[3], RNG_SPLITMIX64),
        "value coding": (head[4], coding.code),
        "seed": (head[5], mask.seed),
        "round": (head[6], mask.round),
        "slot": (head[7], mask.slot),
        "keep threshold": (head[8], mask.kept),
        "q": (head[9], q),
        "count of q": (q_count, 1),
        "layout fingerprint": (fingerprint.hex(), layout.fingerprint.hex()),
        "dense count": (dense, sum(spec.numel for spec in layout.dense)),
        "raw size": (raw, sum(_raw_size(spec) for spec in layout.raw)),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise PacketError(f"the packet's {field} is {found!r}, expected {wanted!r}")
    positions = seeded_positions(layout, mask)
    sizes = {name: where.size for name, where in positions.items()}
    if kept != sum(sizes.values()):
        raise PacketError(f"the packet has {kept} survivors, the mask {sum(sizes.values())}")
    if len(packet) != HEADER_BYTES + (kept + dense) * coding.width + raw:
        raise PacketError(f"the packet has {len(packet)} bytes, its header says otherwise")
    body = memoryview(packet)[HEADER_BYTES:]
    middle, end = kept * coding.width, (kept + dense) * coding.width
    survivor_values = _numbers(body[:middle], coding, exponent, q)
    dense_values = _numbers(body[middle:end], coding, dense_exponent, 1.0)
    return Survivors(
        layout=layout,
        positions=positions,
        values=_split(survivor_values, sizes),
        dense=_split(dense_values, {spec.name: spec.numel for spec in layout.dense}),
        raw=_raw_arrays(body[end:], layout),
        q=q,
        mask=mask,
    )


def _check_frame(packet: bytes) -> None:
    if len(packet) < HEADER_BYTES:
        raise PacketError(f"the packet has {len(packet)} bytes, a header alone {HEADER_BYTES}")
    if packet[:4] != MAGIC:
        raise PacketError(f"not a fl-darex packet: it starts with {packet[:4]!r}, not {MAGIC!r}")
    if packet[4] != VERSION:
        raise PacketError(f"unknown packet version {packet[4]}; this receiver knows {VERSION}")
    end = HEADER_BYTES - _CHECKSUM.size
    view = memoryview(packet)
    found = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[:end]))
    if found != _CHECKSUM.unpack_from(packet, end)[0]:
        raise PacketError("the packet's checksum does not match: it was damaged on the way")


def _numbers(data: memoryview, coding: Coding, exponent: int, q: float) -> NDArray[np.float32]:
    allowed = coding.exponents
    if exponent not in allowed:
        raise PacketError(
            f"the packet's exponent is {exponent}, allowed: {allowed[0]} to {allowed[-1]}"
        )
    with np.errstate(over="ignore"):
        numbers = coding.read(data, exponent)
        largest = np.max(np.abs(numbers)) if numbers.size else np.float32(0)
        if not np.isfinite(largest):
            raise PacketError("the packet holds NaN or infinite values")
        if not np.isfinite(largest / np.float32(q)):
            raise PacketError("the packet holds values that are infinite once divided by q")
    return numbers


def _joined(parts: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    listed = list(parts)
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.float32)


def _exponent(numbers: NDArray[np.float32], q: float, coding: Coding) -> int:
    """Return the power of two to write numbers with; refuse what the decoder would refuse."""
    largest = np.max(np.abs(numbers)) if numbers.size else np.float32(0)
    if not np.isfinite(largest):
        raise DeltaError("the update holds NaN or infinite values; training has diverged")
    exponent = coding.exponent(largest)
    sent = coding.write(np.array([largest], dtype=np.float32), exponent)
    with np.errstate(over="ignore"):
        read = coding.read(memoryview(sent), exponent)[0] / np.float32(q)
    if not np.isfinite(read):
        raise DeltaError(f"the update holds {largest}, which is infinite once divided by q = {q}")
    return exponent


def _split(
    numbers: NDArray[np.float32], sizes: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    ends = np.cumsum(list(sizes.values()), dtype=np.int64)
    return dict(zip(sizes, np.split(numbers, ends[:-1]), strict=True)) if sizes else {}


def _raw_bytes(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _raw_size(spec: TensorSpec) -> int:
    return spec.numel * _raw_dtype(spec).itemsize


def _raw_dtype(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")


def _raw_arrays(data: memoryview, layout: Layout) -> dict[str, NDArray[Any]]:
    arrays, start = {}, 0
    for spec in layout.raw:
        end = start + _raw_size(spec)
        flat = np.frombuffer(data[start:end], dtype=_raw_dtype(spec))
        if flat.dtype.kind == "b" and (flat.view(np.uint8) > 1).any():
            raise PacketError(f"{spec.name!r} holds bytes that are no booleans")
        arrays[spec.name] = flat.astype(spec.dtype).reshape(spec.shape)
        start = end
    return arrays
