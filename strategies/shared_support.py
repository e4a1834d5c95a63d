"""Clients side by side at the coordinates that all of them send.

With one mask for all clients of a round, each client's update is its values on the same small
support. Strategies that compare clients (median, trimmed mean, Krum, Bulyan, q-FedAvg) do so there;
elsewhere every client says "no change". Memory is ``clients x support``, not ``clients x model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import PacketError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.positions import Mask, Positions, positions_in
from fl_darex.wire.reader import Packet

from .aggregation import Arrays, Refuse, Reply, mean_counters, shortened


class SharedSupport:
    """Where the clients of a round have values, and their values there.

    Args:
        base: The tensors that the clients were sent.
        layout: Their layout.
        mask: The mask that all packets have; None if there are none: the support is everything.
    """

    def __init__(self, base: Mapping[str, NDArray[Any]], layout: Layout, mask: Mask | None) -> None:
        self._base, self._layout = base, layout
        found = {} if mask is None else positions_in(layout, mask)
        self._everything = mask is None
        # A tensor without survivors has nothing to compare.
        self._where: dict[str, Positions] = {n: at for n, at in found.items() if at.size}
        self._drawn = sum(at.size for at in found.values())

    def fitting(self, replies: list[Reply], refuse: Refuse) -> list[Reply]:
        """Return the replies that have as many survivors as the mask keeps."""
        fitting = []
        for reply in replies:
            try:
                if reply.packet is not None:
                    reply.packet.check_count(self._drawn)
                fitting.append(reply)
            except PacketError as error:
                refuse(reply.terms.slot, error)
        return fitting

    def before(self) -> ArrayRecord:
        """Return the model before the round, on the support."""
        return to_record({name: self._at(name, self._base[name]) for name in self._names()})

    def of(self, reply: Reply) -> ArrayRecord:
        """Return one client's values on the support."""
        if reply.packet is None:
            arrays = to_arrays(reply.record)
            values = {name: self._at(name, arrays[name]) for name in self._names()}
        else:
            values = self._of_packet(reply.packet)
        if reply.factor != 1.0:
            values = {
                name: shortened(array, self._at(name, self._base[name]), reply.factor)
                for name, array in values.items()
            }
        return to_record(values)

    def expanded(self, record: ArrayRecord, used: list[Reply]) -> ArrayRecord:
        """Return the whole model, given what a strategy makes of the support."""
        moved: Arrays = {}
        for name, values in to_arrays(record).items():
            base = self._base[name]
            flat = base.reshape(-1).copy()
            at = self._where.get(name)
            flat[slice(None) if at is None else at] = values.reshape(-1).astype(base.dtype)
            moved[name] = flat.reshape(base.shape)
        moved |= mean_counters(self._base, self._layout, used)
        return to_record({name: moved.get(name, base) for name, base in self._base.items()})

    def _names(self) -> list[str]:
        """Return the tensors that are compared: counters have no direction to take a step in."""
        pruned = [s.name for s in self._layout.pruned if self._everything or s.name in self._where]
        return [*pruned, *(spec.name for spec in self._layout.dense)]

    def _at(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        at = self._where.get(name)
        found = array if at is None else array.reshape(-1)[at]
        return found.astype(self._base[name].dtype, copy=False)

    def _of_packet(self, packet: Packet) -> Arrays:
        values, start = {}, 0
        for index, spec in enumerate(self._layout.pruned):
            if (at := self._where.get(spec.name)) is None:
                continue
            change = packet.numbers(start, start + at.size) / np.float32(packet.q_of(index))
            start += at.size
            values[spec.name] = self._plus(self._at(spec.name, self._base[spec.name]), change)
        for name, change in packet.dense().items():
            base = self._base[name]
            values[name] = self._plus(base, change.reshape(base.shape))
        return values

    def _plus(self, base: NDArray[Any], change: NDArray[np.float32]) -> NDArray[Any]:
        return (base.astype(np.result_type(base.dtype, np.float32)) + change).astype(base.dtype)
