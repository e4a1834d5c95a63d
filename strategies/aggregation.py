"""The weighted mean of replies, packed or dense.

Replies stay packed until the round closes, so memory does not grow with the number of clients
beyond their packets, and the result does not depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from fl_darex.compression.compressor import compressor
from fl_darex.compression.terms import Terms
from fl_darex.compression.weighted_sum import Share, add_packets
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import packet_of, to_arrays
from fl_darex.wire.reader import Packet

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Reply:
    """One client's reply, ready to be added.

    Attributes:
        message: The reply itself.
        model: Name of its ArrayRecord that holds the model or a packet.
        metrics: Name of its MetricRecord that holds the weight.
        weight: Its share before normalisation, for example the number of examples.
        terms: What this client was told.
        packet: Its packet, once that was checked; None where its tensors came whole.
        factor: What its change is multiplied by, at most 1; less where it was clipped.
    """

    message: Message
    model: str
    metrics: str
    weight: float
    terms: Terms
    packet: Packet | None = None
    factor: float = 1.0

    @property
    def record(self) -> ArrayRecord:
        """Its arrays or its packet."""
        return self.message.content.array_records[self.model]


Refuse = Callable[[int, PacketError], None]
"""Called with the partition of a reply that cannot be used, and why."""


def opened(
    base: Mapping[str, NDArray[Any]], layout: Layout, replies: Sequence[Reply], refuse: Refuse
) -> list[Reply]:
    """Return the replies whose packets or tensors are sound, packets opened.

    Args:
        base: The tensors that the clients were sent.
        layout: Their layout.
        replies: Not looked at so far.
        refuse: Told of the others.
    """
    sound: list[Reply] = []
    for reply in replies:
        try:
            sound.append(replace(reply, packet=_open(reply, base, layout)))
        except PacketError as error:
            refuse(reply.terms.slot, error)
    return sound


def weighted_mean(
    base: Mapping[str, NDArray[Any]], layout: Layout, replies: Sequence[Reply], refuse: Refuse
) -> tuple[Arrays, list[Reply]]:
    """Return the mean of what the replies say the tensors should be, and the replies used.

    With dense replies only, the result has the same bits as Flower's own FedAvg on them, in
    this order. A packet stands for ``base + survivors / q``.

    Args:
        base: The tensors that the clients were sent.
        layout: Their layout.
        replies: Opened ones, in partition order.
        refuse: Told of the replies that turn out not to fit their masks.

    Raises:
        PacketError: If no reply can be used, or all weights are 0.
    """
    sound = list(replies)
    while sum(reply.weight for reply in sound) > 0.0:
        result, odd = _combine(base, layout, sound)
        if result is not None:
            return result, sound
        # How many entries a mask keeps comes to light when it is drawn: begin again without.
        for reply, reason in odd:
            refuse(reply.terms.slot, reason)
        gone = {id(reply) for reply, _ in odd}
        sound = [reply for reply in sound if id(reply) not in gone]
    raise PacketError(
        "no reply of this round can be used, or all of them have weight 0", Reason.REPLY
    )


def _open(reply: Reply, base: Mapping[str, NDArray[Any]], layout: Layout) -> Packet | None:
    """Return a reply's packet, checked; None where its tensors came whole, and were."""
    packet = packet_of(reply.record)
    if packet is None:
        _check_dense(reply.record, base)  # read again when it is added: one at a time
        return None
    return compressor(reply.terms.method).decompress(packet, layout, reply.terms)


Odd = list[tuple[Reply, PacketError]]


def _combine(
    base: Mapping[str, NDArray[Any]], layout: Layout, replies: list[Reply]
) -> tuple[Arrays | None, Odd]:
    """Return the mean, or the replies because of which there is none."""
    total = sum(reply.weight for reply in replies)
    packed = [(reply, reply.packet) for reply in replies if reply.packet is not None]
    share = sum(reply.weight for reply, _ in packed) / total
    moved: Arrays = {}
    # Shares of the packets alone: their sum is a mean, whatever the dense replies weigh.
    shares = [
        Share(packet, reply.weight / total / (share or 1.0), reply.factor)
        for reply, packet in packed
    ]
    if shares:
        sums = np.empty(sum(spec.numel for spec in layout.pruned), dtype=np.float32)
        if bad := {id(one.packet) for one in add_packets(sums, layout, shares, clear=True)}:
            return None, [(reply, _odd(packet)) for reply, packet in packed if id(packet) in bad]
        moved = _moved(base, layout, sums) | _dense_moved(base, layout, shares)
    dense = [reply for reply in replies if reply.packet is None]
    result = _dense_sum(dense, total, base, layout)
    for name, array in moved.items() if share else ():
        if name in result:
            array = (result[name] + array * share).astype(array.dtype)
        result[name] = array
    result |= mean_counters(base, layout, replies)
    return {name: result[name] for name in base}, []


def _odd(packet: Packet) -> PacketError:
    return PacketError(
        f"the packet's {packet.header.survivors} survivors are not as many as its mask keeps",
        Reason.POSITIONS,
    )


def mean_counters(
    base: Mapping[str, NDArray[Any]], layout: Layout, replies: Sequence[Reply]
) -> Arrays:
    """Return the weighted mean of the tensors that are not floating point, as whole numbers."""
    total = sum(reply.weight for reply in replies)
    counters = _Counters({spec.name: base[spec.name] for spec in layout.raw})
    for reply in replies if layout.raw else ():
        values = to_arrays(reply.record) if reply.packet is None else reply.packet.raw()
        for name in counters.base:
            counters.add(name, values[name], reply.weight / total)
    return {spec.name: counters.moved(spec.name) for spec in layout.raw}


def _dense_sum(
    dense: list[Reply], total: float, base: Mapping[str, NDArray[Any]], layout: Layout
) -> Arrays:
    """Return the dense replies' part of the mean, with the bits of aggregate_arrayrecords."""
    result: Arrays = {}
    counters = {spec.name for spec in layout.raw}
    for reply in dense:
        for name, array in to_arrays(reply.record).items():
            if name in counters:
                continue
            if reply.factor != 1.0:
                array = shortened(array, base[name], reply.factor)
            term = array * (reply.weight / total)
            if name in result:
                result[name] += term
            else:
                result[name] = term
    return result


def shortened(array: NDArray[Any], base: NDArray[Any], factor: float) -> NDArray[Any]:
    """Return ``base + factor * (array - base)`` in the type of the base."""
    wide = np.result_type(base.dtype, np.float32)
    change = array.astype(wide) - base
    return np.asarray(base + change * wide.type(factor), dtype=base.dtype)


def _moved(base: Mapping[str, NDArray[Any]], layout: Layout, sums: NDArray[np.float32]) -> Arrays:
    """Return base plus the packets' weighted sum, for all pruned tensors."""
    moved: Arrays = {}
    start = 0
    for spec in layout.pruned:
        part = sums[start : start + spec.numel].reshape(spec.shape)
        start += spec.numel
        if base[spec.name].dtype == np.float32:
            part += base[spec.name]  # in place: the accumulator becomes the model
            moved[spec.name] = part
        else:
            moved[spec.name] = (base[spec.name] + part).astype(base[spec.name].dtype)
    return moved


def _dense_moved(base: Mapping[str, NDArray[Any]], layout: Layout, shares: list[Share]) -> Arrays:
    changes = {
        spec.name: np.zeros(spec.numel, np.result_type(base[spec.name].dtype, np.float32))
        for spec in layout.dense
    }
    for member in shares:
        for name, values in member.packet.dense().items():
            changes[name] += values * changes[name].dtype.type(member.share * member.factor)
    return {
        name: (base[name] + change.reshape(base[name].shape)).astype(base[name].dtype)
        for name, change in changes.items()
    }


class _Counters:
    """Means of tensors that are not floating point: base plus the rounded mean difference."""

    def __init__(self, base: Mapping[str, NDArray[Any]]) -> None:
        self.base = base
        self._sums = {name: np.zeros(array.size) for name, array in base.items()}

    def add(self, name: str, array: NDArray[Any], share: float) -> None:
        """Add one client's new values."""
        if array.dtype.kind == "f":
            array = np.rint(array)
        with np.errstate(over="ignore"):
            change = _integers(array) - _integers(self.base[name])
        self._sums[name] += change.reshape(-1) * share

    def moved(self, name: str) -> NDArray[Any]:
        """Return a tensor's new values."""
        base = self.base[name]
        change = np.rint(self._sums[name]).astype(np.int64).reshape(base.shape)
        return (_integers(base) + change).astype(base.dtype)


def _integers(array: NDArray[Any]) -> NDArray[np.int64]:
    # Differences are taken modulo 2**64, so that numbers above 2**53 keep every bit.
    return array.astype(np.int64)


def _check_dense(record: ArrayRecord, base: Mapping[str, NDArray[Any]]) -> None:
    if set(record) != set(base):
        odd = sorted(set(record).symmetric_difference(base))[:5]
        _refuse(f"the reply's tensors differ from those sent: {odd}", Reason.LAYOUT)
    for name, array in record.items():
        if len(array.data) > _LARGEST_HEADER + base[name].size * _LARGEST_ITEM:
            _refuse(f"{name!r} has {len(array.data)} bytes, far more than were sent", Reason.SIZE)
    for name, found in to_arrays(record).items():
        sent = base[name]
        if found.shape != sent.shape:
            _refuse(f"{name!r} has shape {found.shape}, sent was {sent.shape}", Reason.LAYOUT)
        if found.dtype.kind not in _FITS.get(sent.dtype.kind, ""):
            _refuse(f"{name!r} is of type {found.dtype}, sent was {sent.dtype}", Reason.LAYOUT)
        with np.errstate(over="ignore"):
            values = found.astype(sent.dtype) if sent.dtype.kind == "f" else found
            if not np.isfinite(values).all():
                _refuse(f"{name!r} holds NaN or infinite values", Reason.VALUES)


def _refuse(message: str, reason: Reason) -> None:
    raise PacketError(message, reason)


_LARGEST_HEADER, _LARGEST_ITEM = 65536, 16
# Kinds of NumPy types that a reply may have, by the kind that was sent.
_FITS = {"f": "f", "i": "iubf", "u": "iubf", "b": "iubf"}
