"""Packet v1: the bytes of one update. ``docs/wire-format.md`` is the specification.

A fixed header, then runs of numbers in the layout's canonical order (tensors sorted by name),
without names or gaps between tensors::

    header     96 bytes, see `fl_darex.wire.header`
    q          4 bytes for each pruned tensor, where there is not one for all
    positions  nothing, slots, or Rice-coded gaps, by the method
    survivors  unscaled, tensor after tensor
    dense      whole deltas
    raw        new values of tensors that are not floating point

Positions of seeded masks are never sent: the receiver draws them from its own copy of seed, round
and slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.masks import ONE
from fl_darex.positions import Mask, StructuredMask
from fl_darex.survivors import Survivors
from fl_darex.wire.header import NO_VERSION, Header, read_header
from fl_darex.wire.mask_header import MaskFields, mask_fields, write_mask
from fl_darex.wire.reader import Packet, read_packet
from fl_darex.wire.values import CODINGS, Coding, Numbers, dense_coding

_MOST_Q = 0xFFFF


def encode(
    survivors: Survivors,
    values: str = "fp16",
    *,
    base: bytes = NO_VERSION,
    sender: int | None = None,
) -> bytes:
    """Write survivors as one packet.

    Args:
        survivors: What pruning left.
        values: Coding of the numbers: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``, ``"int4"``
            or ``"sign"``. Dense tensors are written in fp16 at least.
        base: Version of the model that the numbers are changes to, 8 bytes; zeros: not said.
        sender: Who writes, so that stochastic rounding differs where a mask is shared; None: the
            mask's own slot.

    Raises:
        ValueError: If ``values`` is unknown, or there are more than 65,535 numbers q.
        DeltaError: If a number is NaN or infinite; training has diverged.
    """
    if values not in CODINGS:
        raise ValueError(f"values must be one of {sorted(CODINGS)}, got {values!r}")
    layout, fields = survivors.layout, mask_fields(survivors.mask)
    qs = np.atleast_1d(np.asarray(survivors.q, dtype=np.float64))
    if qs.size > _MOST_Q:
        raise ValueError(f"a packet carries {_MOST_Q} numbers q at most, got {qs.size}")
    dense = _joined(survivors.dense[spec.name] for spec in layout.dense)
    noise = _noise(fields, fields["slot"] if sender is None else sender)
    # One exponent each: a running variance may move a million times as far as a weight.
    kept, exponent = _written(survivors.numbers, qs.min(initial=1.0), CODINGS[values], noise)
    whole, dense_exponent = _written(dense, 1.0, dense_coding(values), noise)
    positions = write_mask(layout, survivors.mask)
    header = Header(
        **fields,
        coding=CODINGS[values].code,
        q=float(qs[0]) if qs.size == 1 else 0.0,
        exponent=exponent,
        dense_exponent=dense_exponent,
        q_count=qs.size,
        fingerprint=layout.fingerprint,
        base=base,
        survivors=survivors.count,
        position_bytes=len(positions),
    )
    q_bytes = b"" if qs.size == 1 else qs.astype("<f4").tobytes()
    raw = [_raw_bytes(survivors.raw[spec.name]) for spec in layout.raw]
    return header.seal(b"".join([q_bytes, positions, kept, whole, *raw]))


def decode(
    packet: bytes,
    layout: Layout,
    mask: Mask,
    *,
    q: float | None,
    values: str,
    base: bytes = NO_VERSION,
) -> Survivors:
    """Read a packet against what the receiver expects; see `open_packet`."""
    return open_packet(packet, layout, mask, q=q, values=values, base=base).survivors()


def open_packet(
    packet: bytes,
    layout: Layout,
    mask: Mask,
    *,
    q: float | None,
    values: str,
    base: bytes = NO_VERSION,
) -> Packet:
    """Check a packet against what the receiver expects, without decoding its survivors.

    Args:
        packet: Bytes from a stranger.
        layout: The receiver's own layout.
        mask: The mask that this client was told to use in this round; a `ListedMask` without
            positions where the client chooses them.
        q: The q that this client was told to use; None: whatever it says, from 1-p to 1.
        values: The value coding that this client was told to use.
        base: Version of the model that the client was sent; zeros: not said.

    Raises:
        PacketError: If the packet is damaged, or is not exactly what was expected. The message
            names the field; ``reason`` is for programs.
    """
    header = read_header(packet)
    fields = mask_fields(mask)
    expected: dict[str, tuple[object, object]] = {
        "method": (header.method, fields["method"]),
        "random generator": (header.generator, fields["generator"]),
        "value coding": (_coding_name(header.coding), values),
        "seed": (header.seed, fields["seed"]),
        "round": (header.round, fields["round"]),
        "slot": (header.slot, fields["slot"]),
        "keep threshold": (header.kept, fields["kept"]),
        "base version": (header.base.hex(), base.hex()),
    }
    if q is not None:
        expected |= {"q": (header.q, q), "count of q": (header.q_count, 1)}
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise PacketError(
                f"the packet's {field} is {found!r}, expected {wanted!r}", Reason.UNEXPECTED
            )
    opened = read_packet(packet, layout, header)
    if isinstance(mask, StructuredMask) and opened.mask != mask:
        found = getattr(opened.mask, "columns", 0)
        raise PacketError(
            f"the packet's share of columns is {found}, expected {mask.columns}", Reason.UNEXPECTED
        )
    # q of single tensors are float32, and may have been rounded down.
    lowest = min(fields["kept"] / ONE, float(np.float32(fields["kept"] / ONE)))
    if q is None and np.min(opened.q, initial=1.0) < lowest:
        raise PacketError(f"the packet holds a q below 1-p = {lowest}", Reason.UNEXPECTED)
    return opened


def _coding_name(code: int) -> str | int:
    return next((name for name, coding in CODINGS.items() if coding.code == code), code)


def _noise(fields: MaskFields, sender: int) -> NDArray[np.uint64]:
    """Return the stream of stochastic rounding: one for each seed, round and sender."""
    text = f"darex.noise.v1|{fields['seed']}|{fields['round']}|{sender}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.array([int.from_bytes(digest, "little")], dtype=np.uint64)


def _written(
    numbers: Numbers, q: float, coding: Coding, noise: NDArray[np.uint64]
) -> tuple[bytes, int]:
    """Return numbers as bytes, and their exponent; refuse what the decoder would refuse."""
    largest = np.max(np.abs(numbers), initial=np.float32(0))
    if not np.isfinite(largest):
        raise DeltaError("the update holds NaN or infinite values; training has diverged")
    exponent = coding.exponent(largest)
    with np.errstate(over="ignore"):
        data = coding.write(numbers, exponent, noise)
    try:
        bound = coding.largest(memoryview(data), numbers.size, exponent)
    except PacketError:
        bound = np.inf
    if not bound / q <= float(np.finfo(np.float32).max):
        raise DeltaError(f"the update holds {largest}, which is infinite once divided by q = {q}")
    return data, exponent


def _joined(parts: Iterable[Numbers]) -> Numbers:
    listed = list(parts)
    return np.concatenate(listed) if listed else np.empty(0, dtype=np.float32)


def _raw_bytes(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
