"""From the replies of a round to those that count: read, opened, clipped, in partition order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from logging import INFO
from typing import Any

from flwr.app import Message
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex.compression.terms import Terms
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason

from .aggregation import Reply, opened
from .clipping import clipped
from .replies import LARGEST_WEIGHT, log_refused, read_reply


@dataclass
class Inbox:
    """The rules by which replies count.

    Attributes:
        partition_of: The partition of each node.
        weighted_by: Key of the metric that weighs a reply.
        max_weight: Largest weight that is believed.
        clip: Largest norm of an update; None: any.
        equal: Whether all count the same, whatever their weight.

    Raises:
        ValueError: If ``max_weight`` is outside (0, 2**53].
    """

    partition_of: Mapping[int, int]
    weighted_by: str
    max_weight: float
    clip: float | None
    equal: bool
    _plain: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not 0.0 < self.max_weight <= LARGEST_WEIGHT:
            raise ValueError(f"max_weight must be in (0, 2**53], got {self.max_weight!r}")

    def usable(
        self,
        messages: Iterable[Message],
        asked: Mapping[int, Terms],
        base: Mapping[str, NDArray[Any]],
        layout: Layout,
    ) -> list[Reply]:
        """Return the replies that can be added, one per client, in partition order.

        Args:
            messages: All that came back, in any order.
            asked: The terms of the nodes that were asked.
            base: The tensors that they were sent.
            layout: Their layout.
        """
        found: dict[int, Reply] = {}
        for message in sorted(messages, key=self._place):
            node = message.metadata.src_node_id
            try:
                if node not in asked or node in found:
                    raise PacketError("nobody asked for this reply, or it came twice", Reason.REPLY)
                reply = read_reply(message, asked[node], self.weighted_by, self.max_weight)
                found[node] = replace(reply, weight=1.0) if self.equal else reply
            except PacketError as error:
                log_refused(self._place(message), error)
        return self._clipped(opened(base, layout, list(found.values()), log_refused), base, layout)

    def _clipped(
        self, replies: list[Reply], base: Mapping[str, NDArray[Any]], layout: Layout
    ) -> list[Reply]:
        if self.clip is None:
            return replies
        short = []
        for reply in replies:
            try:
                short.append(clipped(reply, base, layout, self.clip))
            except PacketError as error:
                log_refused(reply.terms.slot, error)
        return short

    def note_plain(self, used: Iterable[Reply]) -> None:
        """Say once of each client that it sends whole tensors although packets were asked for."""
        for reply in used:
            node = reply.message.metadata.src_node_id
            if reply.packet is not None or reply.terms.method == "dense" or node in self._plain:
                continue
            self._plain.add(node)
            log(
                INFO,
                "client %s sends whole tensors: its ClientApp has no DarexMod; it counts like any "
                "other, and is sent the whole model each round",
                reply.terms.slot,
            )

    def _place(self, message: Message) -> int:
        return self.partition_of.get(message.metadata.src_node_id, -1)
