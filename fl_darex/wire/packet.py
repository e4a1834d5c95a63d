"""Packet v1: the bytes of one update. ``docs/wire-format.md`` is the specification.

A fixed header, then runs of numbers in the layout's canonical order (tensors sorted by name),
without names or gaps between tensors::

    header     96 bytes, see `fl_darex.wire.header`
    q          4 bytes for each pruned tensor, where there is not one for all
    positions  nothing, slots, or Rice-coded gaps, by the mask kind
    survivors  unscaled, tensor after tensor
    dense      whole deltas
    raw        new values of tensors that are not floating point

Positions of seeded masks are never sent: the receiver draws them from its own copy of seed, round
and slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import DIVERGED, DeltaError, PacketError, Reason
from fl_darex.masks import ONE
from fl_darex.positions import Mask
from fl_darex.survivors import Survivors
from fl_darex.wire.codings import (
    CODINGS,
    Coding,
    Numbers,
    Scale,
    coding_of,
    dense_parts,
    scaled,
    type_of,
)
from fl_darex.wire.codings.coding import noise_of
from fl_darex.wire.header import NO_VERSION, Header, expect, read_header
from fl_darex.wire.reader import Packet, read_packet, room_of

_MOST_Q = 0xFFFF


def encode(
    survivors: Survivors,
    values: str = "fp16",
    *,
    base: bytes = NO_VERSION,
    sender: int | None = None,
    scale: Scale = "unbiased",
) -> bytes:
    """Write survivors as one packet.

    Args:
        survivors: What pruning left.
        values: Coding of the numbers: ``"fp64"``, ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``,
            ``"int4"``, ``"eden4"`` to ``"eden1"``, ``"sign"``, ``"qsgd8"``, ``"qsgd4"``,
            ``"qsgd2"`` or ``"lookup2"``. Dense tensors are written in fp16 at least, but beside
            EDEN's: in int8, and the large ones as survivors are.
        base: Version of the model that the numbers are changes to, 8 bytes; zeros: not said.
        sender: Who writes, so that stochastic rounding differs where a mask is shared; None: the
            mask's own slot.
        scale: Of ``"eden1"`` to ``"eden4"``: ``"unbiased"``, or ``"least-squares"``, nearer to the
            numbers and shorter (`fl_darex.wire.codings.eden.Eden`).

    Raises:
        ValueError: If ``values`` is unknown or has no such scale, or there are more than 65,535
            numbers q.
        DeltaError: If a number is NaN or infinite; training has diverged.
    """
    if values not in CODINGS:
        raise ValueError(f"values must be one of {sorted(CODINGS)}, got {values!r}")
    layout, fields = survivors.layout, survivors.mask.fields
    qs = np.atleast_1d(np.asarray(survivors.q, dtype=np.float64))
    if qs.size > _MOST_Q:
        raise ValueError(f"a packet carries {_MOST_Q} numbers q at most, got {qs.size}")
    noise = noise_of(fields.seed, fields.round, fields.slot if sender is None else sender)
    # One exponent each: a running variance may move a million times as far as a weight.
    coding, q = scaled(CODINGS[values], scale), float(qs.min(initial=1.0))
    numbers, exponent = _written(survivors.numbers, q, coding, layout.pruned, noise)
    parts = [
        _written(_flat(survivors.dense, specs), 1.0, beside, specs, noise)
        for beside, specs in dense_parts(values, layout.dense)
    ]
    positions = survivors.mask.section(layout)
    header = Header(
        **vars(fields),
        coding=coding.code,
        q=float(qs[0]) if qs.size == 1 else 0.0,
        exponent=exponent,
        dense_exponent=parts[0][1],  # where there is a second part, its coding has none
        q_count=qs.size,
        fingerprint=layout.fingerprint,
        base=base,
        survivors=survivors.count,
        position_bytes=len(positions),
    )
    q_bytes = b"" if qs.size == 1 else qs.astype("<f4").tobytes()
    arrays = (survivors.raw[spec.name] for spec in layout.raw)
    raw = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays]
    return header.seal(b"".join([q_bytes, positions, numbers, *(data for data, _ in parts), *raw]))


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
    coding, fields = coding_of(header.coding), mask.fields
    for name, wanted in vars(fields).items():
        expect(name, getattr(header, name), wanted)
    expect("value coding", coding.name if coding else header.coding, values)
    expect("base version", header.base.hex(), base.hex())
    if q is not None:
        expect("q", header.q, q)
        expect("count of q", header.q_count, 1)
    opened = read_packet(packet, layout, header, mask)
    for detail, told in mask.details.items():
        expect(detail, opened.mask.details[detail], told)
    # q of single tensors are float32, and may have been rounded down.
    lowest = min(fields.keep / ONE, float(np.float32(fields.keep / ONE)))
    if q is None and np.min(opened.q, initial=1.0) < lowest:
        raise PacketError(f"the packet holds a q below 1-p = {lowest}", Reason.UNEXPECTED)
    return opened


def _flat(dense: Mapping[str, Numbers], specs: Iterable[TensorSpec]) -> Numbers:
    return np.concatenate([np.empty(0, dtype=np.float32), *(dense[spec.name] for spec in specs)])


def _written(
    numbers: Numbers,
    q: float,
    coding: Coding,
    specs: Sequence[TensorSpec],
    noise: NDArray[np.uint64],
) -> tuple[bytes, int]:
    """Return numbers as bytes, and their exponent; refuse what the decoder would refuse."""
    kind, room = type_of(coding), room_of(coding, specs)
    with np.errstate(over="ignore"):
        numbers = numbers.astype(kind, copy=False)
    largest = np.max(np.abs(numbers), initial=kind.type(0))
    if not np.isfinite(largest):
        raise DeltaError(f"the update holds NaN or infinite values; {DIVERGED}")
    exponent = coding.exponent(largest)
    with np.errstate(over="ignore"):
        data = coding.write(numbers, exponent, noise)
    try:
        bound = coding.largest(memoryview(data), numbers.size, exponent)
    except PacketError:
        bound = np.inf
    if not bound / q <= float(np.finfo(room).max):
        raise DeltaError(
            f"the update holds {largest}, which is infinite in {room} once divided by q = {q}"
        )
    return data, exponent
