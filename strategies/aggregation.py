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
    adder = _PacketSum(base, layout)
    used: list[Reply] = []
    dense: list[tuple[Reply, Arrays]] = []
    for reply in replies:
        try:
            packet = packet_of(reply.record)
            if packet is None:
                dense.append((reply, _dense_arrays(reply.record, base)))
            else:
                method = compressor(reply.terms.method)
                adder.add(method.decompress(packet, layout, reply.terms), reply.weight)
        except PacketError as error:
            refuse(reply, error)
        else:
            used.append(reply)
    total = sum(reply.weight for reply in used)
    if not total > 0.0:
        raise PacketError("no reply of this round can be used, or all of them have weight 0")
    return _combine(base, layout, adder, dense, total), used


def _combine(
    base: Mapping[str, NDArray[Any]],
    layout: Layout,
    adder: _PacketSum,
    dense: list[tuple[Reply, Arrays]],
    total: float,
) -> Arrays:
    if not dense:
        return {name: adder.mean(name, base[name], total) for name in base}
    # The order of operations of Flower's aggregate_arrayrecords, for equal bits.
    result: Arrays = {}
    for reply, arrays in dense:
        factor = reply.weight / total
        for name, array in arrays.items():
            term = array * factor
            result[name] = result[name] + term if name in result else term
    if adder.weight:
        factor = adder.weight / total
        for name in base:
            mean = adder.mean(name, base[name], adder.weight)
            result[name] = result[name] + mean * factor
    return result


class _PacketSum:
    """Sum of ``weight * survivors / q`` over packets; float32, or wider where the model is."""

    def __init__(self, base: Mapping[str, NDArray[Any]], layout: Layout) -> None:
        self.weight = 0.0
        self._base = base
        self._layout = layout
        self._raw = {spec.name for spec in layout.raw}
        self._sums: Arrays = {}

    def add(self, survivors: Survivors, weight: float) -> None:
        self.weight += weight
        for name, values in survivors.values.items():
            total = self._sum(name)
            # A packet has each position once, so += on an index array adds them all.
            total[survivors.positions[name]] += values * total.dtype.type(weight / survivors.q)
        for name, values in survivors.dense.items():
            total = self._sum(name)
            total += values * total.dtype.type(weight)
        for name, array in survivors.raw.items():
            total = self._sum(name)
            total += array.reshape(-1) * weight

    def mean(self, name: str, base: NDArray[Any], total: float) -> NDArray[Any]:
        """Return the tensor's new values: base + sum / total, or the mean where it is raw."""
        if name not in self._sums:
            return base
        change = (self._sums[name] / total).reshape(base.shape)
        if name in self._raw:
            return np.rint(change).astype(base.dtype)
        moved: NDArray[Any] = (base + change.astype(self._sums[name].dtype)).astype(base.dtype)
        return moved

    def _sum(self, name: str) -> NDArray[Any]:
        if name not in self._sums:
            base = self._base[name]
            wide = np.float64 if name in self._raw else np.result_type(base.dtype, np.float32)
            self._sums[name] = np.zeros(base.size, dtype=wide)
        return self._sums[name]


def _dense_arrays(record: ArrayRecord, base: Mapping[str, NDArray[Any]]) -> Arrays:
    arrays = to_arrays(record)
    if set(arrays) != set(base):
        odd = sorted(set(arrays).symmetric_difference(base))[:5]
        raise PacketError(f"the reply's tensors differ from those sent: {odd}")
    for name, array in arrays.items():
        if array.shape != base[name].shape:
            raise PacketError(f"{name!r} has shape {array.shape}, sent was {base[name].shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PacketError(f"{name!r} holds NaN or infinite values")
    return arrays
