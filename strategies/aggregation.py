"""The weighted mean of replies, packed or dense, in one accumulator.

Replies stay packed until the round closes. Then each packet is decoded, added and forgotten, in
partition order, so memory does not grow with the number of clients and the result does not
depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from fl_darex.compressors import compressor
from fl_darex.delta import Layout
from fl_darex.errors import PacketError
from fl_darex.survivors import Survivors
from fl_darex.wire.records import packet_of, to_arrays
from fl_darex.wire.terms import Terms

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Reply:
    """One client's reply, ready to be added.

    Attributes:
        message: The reply itself.
        record: Its arrays or its packet.
        weight: Its share before normalisation, for example the number of examples.
        terms: What this client was told.
    """

    message: Message
    record: ArrayRecord
    weight: float
    terms: Terms


def weighted_mean(
    base: Mapping[str, NDArray[Any]],
    layout: Layout,
    replies: Sequence[Reply],
    refuse: Callable[[Reply, PacketError], None],
) -> tuple[Arrays, list[Reply]]:
    """Return the mean of what the replies say the tensors should be, and the replies used.

    With dense replies only, the result has the same bits as Flower's own FedAvg on them, in
    this order. A packet stands for ``base + survivors / q``.

    Args:
        base: The tensors that the clients were sent.
        layout: Their layout.
        replies: In partition order.
        refuse: Called for each reply that cannot be used; it counts nothing.

    Raises:
        PacketError: If no reply can be used, or all weights are 0.
    """
    # Shares of what was offered: they cannot overflow, whatever the weights are.
    offered = sum(reply.weight for reply in replies)
    changes = _Changes(base, layout)
    used: list[Reply] = []
    dense: list[Reply] = []
    for reply in replies:
        try:
            packet = packet_of(reply.record)
            if packet is None:
                _check_dense(reply.record, base)  # read again when it is added: one at a time
                dense.append(reply)
            else:
                method = compressor(reply.terms.method)
                survivors = method.decompress(packet, layout, reply.terms)
                changes.add(survivors, reply.weight / offered if offered else 0.0)
        except PacketError as error:
            refuse(reply, error)
        else:
            used.append(reply)
    total = sum(reply.weight for reply in used)
    if not total > 0.0:
        raise PacketError("no reply of this round can be used, or all of them have weight 0")
    return _combine(base, layout, changes, dense, offered, total), used


def _combine(
    base: Mapping[str, NDArray[Any]],
    layout: Layout,
    changes: _Changes,
    dense: list[Reply],
    offered: float,
    total: float,
) -> Arrays:
    raw = {spec.name for spec in layout.raw}
    result: Arrays = {}
    for reply in dense:
        for name, array in to_arrays(reply.record).items():
            if name in raw:
                changes.add_raw(name, array, reply.weight / offered)
                continue
            # The order of operations of Flower's aggregate_arrayrecords, for equal bits.
            term = array * (reply.weight / total)
            result[name] = result[name] + term if name in result else term
    packed = total - sum(reply.weight for reply in dense)
    for name, array in base.items():
        if name in result and packed > 0.0:
            share = changes.moved(name, array, packed / offered) * (packed / total)
            result[name] = (result[name] + share).astype(array.dtype)
        elif name not in result:
            result[name] = changes.moved(name, array, total / offered)
    return {name: result[name] for name in base}


class _Changes:
    """Sum of ``share * change`` over replies; float32, or wider where the model is."""

    def __init__(self, base: Mapping[str, NDArray[Any]], layout: Layout) -> None:
        self._base = base
        self._raw = {spec.name for spec in layout.raw}
        self._sums: Arrays = {}

    def add(self, survivors: Survivors, share: float) -> None:
        """Add what a packet says, ``survivors / q``."""
        for name, values in survivors.values.items():
            total = self._sum(name)
            # A packet has each position once, so += on an index array adds them all.
            total[survivors.positions[name]] += values * total.dtype.type(share / survivors.q)
        for name, values in survivors.dense.items():
            total = self._sum(name)
            total += values * total.dtype.type(share)
        for name, array in survivors.raw.items():
            self.add_raw(name, array, share)

    def add_raw(self, name: str, array: NDArray[Any], share: float) -> None:
        """Add new values of a tensor that is not floating point."""
        if array.dtype.kind == "f":
            array = np.rint(array)
        with np.errstate(over="ignore"):
            change = _integers(array) - _integers(self._base[name])
        total = self._sum(name)
        total += change.reshape(-1) * share

    def moved(self, name: str, base: NDArray[Any], share: float) -> NDArray[Any]:
        """Return a tensor's new values: base + sum / share; whole numbers where it is raw."""
        if name not in self._sums:
            return base
        change = (self._sums[name] / share).reshape(base.shape)
        if name in self._raw:
            return (_integers(base) + np.rint(change).astype(np.int64)).astype(base.dtype)
        moved: NDArray[Any] = (base + change.astype(self._sums[name].dtype)).astype(base.dtype)
        return moved

    def _sum(self, name: str) -> NDArray[Any]:
        if name not in self._sums:
            base = self._base[name]
            wide = np.float64 if name in self._raw else np.result_type(base.dtype, np.float32)
            self._sums[name] = np.zeros(base.size, dtype=wide)
        return self._sums[name]


def _integers(array: NDArray[Any]) -> NDArray[np.int64]:
    # Differences are taken modulo 2**64, so that numbers above 2**53 keep every bit.
    return array.astype(np.int64)


def _check_dense(record: ArrayRecord, base: Mapping[str, NDArray[Any]]) -> None:
    if set(record) != set(base):
        odd = sorted(set(record).symmetric_difference(base))[:5]
        raise PacketError(f"the reply's tensors differ from those sent: {odd}")
    for name, array in record.items():
        if len(array.data) > _LARGEST_HEADER + base[name].size * _LARGEST_ITEM:
            raise PacketError(f"{name!r} has {len(array.data)} bytes, far more than were sent")
    for name, found in to_arrays(record).items():
        sent = base[name]
        if found.shape != sent.shape:
            raise PacketError(f"{name!r} has shape {found.shape}, sent was {sent.shape}")
        if found.dtype.kind not in _FITS.get(sent.dtype.kind, ""):
            raise PacketError(f"{name!r} is of type {found.dtype}, sent was {sent.dtype}")
        with np.errstate(over="ignore"):
            values = found.astype(sent.dtype) if sent.dtype.kind == "f" else found
            if not np.isfinite(values).all():
                raise PacketError(f"{name!r} holds NaN or infinite values")


_LARGEST_HEADER, _LARGEST_ITEM = 65536, 16
# Kinds of NumPy types that a reply may have, by the kind that was sent.
_FITS = {"f": "f", "i": "iubf", "u": "iubf", "b": "iubf"}
