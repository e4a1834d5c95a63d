"""What came: one reply, or the sum of many, as something that can be added to a model.

A packet, a reply with whole tensors and the opened sum of secure aggregation are all updates. The
weighted sum, clipping, the shared support and secure aggregation know nothing else of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import Array, Arrays, added, square
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.positions import Mask, Positions
from fl_darex.shown import described
from fl_darex.survivors import Numbers, Q, Survivors
from fl_darex.wire.reader import Packet

_AT_ONCE = 1 << 20  # numbers whose squares are added at once

Support = Mapping[str, Positions | slice]
"""Flat positions by tensor that all clients of a round have; a slice stands for all."""
Halves = tuple[NDArray[np.uint16], np.float32]
Before = Mapping[str, Array]
"""The model before, by name: what the client was sent."""


class Update:
    """What one client says of the model; this one says nothing.

    Attributes:
        layout: Of its tensors; what says nothing has none.
        mask: Where its pruned tensors change; None: anywhere, it holds whole tensors.
        count: How many numbers it holds of pruned tensors.
        q: What its survivors are divided by; None: it has none.
    """

    layout: Layout
    mask: Mask | None = None
    count: int = 0
    q: Q | None = None

    def fitted(self, layout: Layout) -> Update | None:
        """Return the same as an update of another layout; None: other tensors are tied in it."""
        return self

    def numbers(self, start: int, end: int, scale: float = 1.0) -> Numbers:
        """Return survivors ``start`` to ``end - 1`` times ``scale``, not divided by q."""
        return np.empty(0, dtype=np.float32)

    def halves(self) -> Halves | None:
        """Return survivors as bits of float16 numbers, and what these are multiplied by.

        None: `numbers` has to be asked.
        """
        return None

    def dense(self) -> Mapping[str, Numbers]:
        """Return the change of each tensor that is always sent whole, flattened."""
        return {}

    def counters(self) -> Mapping[str, Array]:
        """Return the new values of the tensors that are not floating point."""
        return {}

    def values(self, before: Before) -> Arrays:
        """Return the whole model as this client says it should be.

        Tensors that do not change are those of ``before``, not copies.

        Raises:
            PacketError: If the mask keeps another number of entries than there are survivors.
        """
        return dict(before)

    def at(self, before: Before, support: Support) -> Arrays:
        """Return the values at the positions that all clients of a round share, and dense tensors.

        Args:
            before: The model before.
            support: Flat positions by tensor; a pruned tensor that is not there is left out.
        """
        return {}

    def norm(self, before: Before) -> float:
        """Return the L2 norm of what it adds to floating-point tensors, with a weight of 1."""
        return 0.0


@dataclass(frozen=True, eq=False)
class SparseUpdate(Update):
    """Survivors at the positions of a mask: a packet, or numbers in memory.

    Attributes:
        layout: The model's layout.
        mask: Where the survivors are.
        q: One number, or one for each pruned tensor.
        count: How many survivors there are.
    """

    __repr__ = described

    layout: Layout
    _numbers: Callable[[int, int, float], Numbers]
    _dense: Callable[[], Mapping[str, Numbers]]
    _raw: Callable[[], Mapping[str, Array]]
    _: KW_ONLY
    mask: Mask
    q: Q
    count: int
    _halves: Callable[[], Halves | None] = lambda: None

    @classmethod
    def of_packet(cls, packet: Packet) -> SparseUpdate:
        """Return what a checked packet says; its numbers are read when they are asked for."""
        known: Any = {"mask": packet.mask, "q": packet.q, "count": packet.header.survivors}
        known["_halves"] = packet.halves
        return cls(packet.layout, packet.numbers, packet.dense, packet.raw, **known)

    @classmethod
    def of_survivors(cls, found: Survivors) -> SparseUpdate:
        """Return what survivors in memory say."""
        known: Any = {"mask": found.mask, "q": found.q, "count": found.count}
        return cls(
            found.layout,
            lambda start, end, scale: found.numbers[start:end] * found.numbers.dtype.type(scale),
            lambda: found.dense,
            lambda: found.raw,
            **known,
        )

    def fitted(self, layout: Layout) -> Update | None:
        """Return itself if that is its layout: its survivors lie in tensors of its own."""
        return self if layout == self.layout else None

    def numbers(self, start: int, end: int, scale: float = 1.0) -> Numbers:
        """Return survivors ``start`` to ``end - 1`` times ``scale``, not divided by q."""
        return self._numbers(start, end, scale)

    def halves(self) -> Halves | None:
        """Return survivors as bits of float16 numbers; see `Update.halves`."""
        return self._halves()

    def dense(self) -> Mapping[str, Numbers]:
        """Return the change of each tensor that is always sent whole, flattened."""
        return self._dense()

    def counters(self) -> Mapping[str, Array]:
        """Return the new values of the tensors that are not floating point."""
        return self._raw()

    def values(self, before: Before) -> Arrays:
        """Return the whole model after this update; see `Update.values`."""
        result, start = dict(before), 0
        # Tensor by tensor: positions of a wide union take twice the memory of the model.
        for index, (name, positions) in enumerate(self.mask.by_tensor(self.layout)):
            end = start + positions.size
            if end > self.count:
                self.check_count(end)
            if positions.size:
                result[name] = added(before[name], self._divided(start, end, index), positions)
            start = end
        self.check_count(start)
        for name, change in self.dense().items():
            result[name] = added(before[name], change)
        result |= {spec.name: result[spec.source] for spec in self.layout.tied}
        return {**result, **self.counters()}

    def at(self, before: Before, support: Support) -> Arrays:
        """Return the values on its own mask's positions; see `Update.at`."""
        values, start = {}, 0
        for index, spec in enumerate(self.layout.pruned):
            if (positions := support.get(spec.name)) is None:
                continue
            base = before[spec.name].reshape(-1)[positions]
            end = start + base.size
            values[spec.name] = added(base, self._divided(start, end, index))
            start = end
        for name, change in self.dense().items():
            values[name] = added(before[name], change)
        return values

    def norm(self, before: Before) -> float:
        """Return the L2 norm of survivors over q and of dense changes, after rounding."""
        total = square(self.dense().values())
        if self.layout.tied:
            after, tied = self.values(before), [spec.name for spec in self.layout.tied]
            total += square(after[name].astype(np.float64) - before[name] for name in tied)
        if isinstance(self.q, float):
            ends = range(0, self.count, _AT_ONCE)
            parts = (self.numbers(at, min(at + _AT_ONCE, self.count)) for at in ends)
            return math.sqrt(total + square(parts) / self.q**2)
        start = 0  # which tensor an entry is in follows from the mask alone
        for index, (_, positions) in enumerate(self.mask.by_tensor(self.layout)):
            end = start + positions.size
            if end > self.count:
                self.check_count(end)
            total += square([self.numbers(start, end)]) / float(self.q[index]) ** 2
            start = end
        self.check_count(start)
        return math.sqrt(total)

    def check_count(self, drawn: int) -> None:
        """Compare the number of survivors with what the mask keeps.

        Raises:
            PacketError: If they differ.
        """
        if drawn != self.count:
            raise PacketError(
                f"the packet has {self.count} survivors, the mask {drawn}", Reason.POSITIONS
            )

    def _divided(self, start: int, end: int, tensor: int) -> Numbers:
        change = self.numbers(start, end)
        change /= change.dtype.type(self.q if isinstance(self.q, float) else self.q[tensor])
        return change


@dataclass(frozen=True, eq=False)
class WholeUpdate(Update):
    """Whole tensors, as a client without the mod sends them; read anew each time, one at a time.

    Attributes:
        layout: The model's layout.
        read: Returns the tensors by name.
    """

    __repr__ = described

    layout: Layout
    read: Callable[[], Mapping[str, Array]]

    def fitted(self, layout: Layout) -> Update | None:
        """Return the same tensors in another layout."""
        return replace(self, layout=layout)

    def counters(self) -> Mapping[str, Array]:
        """Return the new values of the tensors that are not floating point."""
        arrays = self.read()
        return {spec.name: arrays[spec.name] for spec in self.layout.raw}

    def values(self, before: Before) -> Arrays:
        """Return the tensors as they came."""
        return dict(self.read())

    def at(self, before: Before, support: Support) -> Arrays:
        """Return the values at some positions, in the types that were sent."""
        arrays, found = self.read(), {}
        for spec in self.layout.pruned:
            if spec.name in support:
                found[spec.name] = arrays[spec.name].reshape(-1)[support[spec.name]]
        found |= {spec.name: arrays[spec.name] for spec in self.layout.dense}
        return {name: array.astype(before[name].dtype, copy=False) for name, array in found.items()}

    def norm(self, before: Before) -> float:
        """Return the L2 norm of the change of floating-point tensors."""
        arrays, total = self.read(), 0.0
        for spec in (*self.layout.pruned, *self.layout.dense):
            total += square([arrays[spec.name].astype(np.float64) - before[spec.name]])
        return math.sqrt(total)
