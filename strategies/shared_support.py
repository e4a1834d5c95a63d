"""Clients side by side at the coordinates that all of them send.

With one mask for all clients of a round, each client's update is its values on the same small
support. Strategies that compare clients (median, trimmed mean, Krum, Bulyan, q-FedAvg) do so there;
elsewhere every client says "no change". Memory is ``clients x support``, not ``clients x model``.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord

from fl_darex.change import Array, Arrays, shortened
from fl_darex.compression.update import Before, Support
from fl_darex.compression.weighted_sum import Part, mean_counters
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.positions import Mask

from .reply import Refuse, Reply


class SharedSupport:
    """Where the clients of a round have values, and their values there.

    Args:
        before: The tensors that the clients were sent.
        layout: Their layout.
        mask: The mask that all packets have; None if there are none: the support is everything.
    """

    def __init__(self, before: Before, layout: Layout, mask: Mask | None) -> None:
        self._before, self._layout = before, layout
        found = {} if mask is None else mask.in_layout(layout)
        self._drawn = sum(at.size for at in found.values())
        # A tensor without survivors has nothing to compare.
        self._support: Support = {name: at for name, at in found.items() if at.size}
        if mask is None:
            self._support = {spec.name: slice(None) for spec in layout.pruned}

    def fitting(self, replies: list[Reply], refuse: Refuse) -> list[Reply]:
        """Return the replies that have as many survivors as the mask keeps."""
        fitting = []
        for reply in replies:
            if reply.packed and (found := reply.update.count) != self._drawn:
                why = f"the packet has {found} survivors, the mask {self._drawn}"
                refuse(reply.terms.slot, PacketError(why, Reason.POSITIONS))
            else:
                fitting.append(reply)
        return fitting

    def before(self) -> ArrayRecord:
        """Return the model before the round, on the support."""
        dense = (spec.name for spec in self._layout.dense)
        return to_record({name: self._at(name) for name in (*self._support, *dense)})

    def of(self, part: Part) -> ArrayRecord:
        """Return one client's values on the support; counters have no direction to go in."""
        values = part.update.at(self._before, self._support)
        if part.factor != 1.0:
            values = {
                name: shortened(array, self._at(name), part.factor)
                for name, array in values.items()
            }
        return to_record(values)

    def expanded(self, record: ArrayRecord, used: Sequence[Part]) -> ArrayRecord:
        """Return the whole model, given what a strategy makes of the support."""
        after: Arrays = {}
        for name, values in to_arrays(record).items():
            if (base := self._before.get(name)) is None:  # the strategy's own idea
                after[name] = values
                continue
            flat = base.reshape(-1).copy()
            flat[self._support.get(name, slice(None))] = values.reshape(-1).astype(base.dtype)
            after[name] = flat.reshape(base.shape)
        after |= mean_counters(self._before, self._layout, used)
        return to_record({**self._before, **after})

    def _at(self, name: str) -> Array:
        base = self._before[name]
        return base.reshape(-1)[self._support[name]] if name in self._support else base
