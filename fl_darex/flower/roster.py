"""Which node has which partition: each node is asked once.

Node ids are random and carry no partition, but seeds, masks and sampling go by partition, so
that a run gives the same result on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

HANDSHAKE = "handshake"
PARTITION_KEY = "partition-id"
MESSAGE_TYPE = f"query.{HANDSHAKE}"


def answer(message: Message, partition: int) -> Message:
    """Return a client's answer to the handshake."""
    content = RecordDict({HANDSHAKE: ConfigRecord({PARTITION_KEY: partition})})
    return Message(content, reply_to=message)


class Roster:
    """The partitions of the nodes that are known so far.

    A node that does not answer, or names a partition that another connected node has, gets the
    lowest free slot; the run is then valid but not repeatable, because node ids are random. A
    SuperNode without a key of its own comes back under a new id after a restart: where the node
    that had its partition is gone, it takes the partition over, at once or as soon as Flower
    notices (a killed node counts as connected for up to a minute).

    Args:
        partition_of: Partition or slot by node id; filled in as nodes answer.
        heard: Called with the node and each configuration in its answer.

    Attributes:
        partition_of: Partition or slot by node id; no two nodes have the same.
    """

    def __init__(
        self,
        partition_of: dict[int, int],
        heard: Callable[[int, ConfigRecord], None] | None = None,
    ) -> None:
        self.partition_of = partition_of
        self._heard = heard
        self._told: dict[int, int] = {}

    def update(self, grid: Grid, timeout: float, question: RecordDict | None = None) -> list[int]:
        """Ask the nodes that are new and return all connected nodes in partition order.

        Args:
            grid: Where the nodes are.
            timeout: Seconds to wait for answers.
            question: What the new nodes are sent; default: nothing.
        """
        nodes = sorted(grid.get_node_ids())
        if new := [node for node in nodes if node not in self.partition_of]:
            told = self._ask(grid, new, timeout, question or RecordDict())
            self._told |= told
            log(INFO, "handshake: %s nodes, %s told their partition", len(new), len(told))
        self._seat(nodes)
        return sorted(nodes, key=self.partition_of.__getitem__)

    def state(self) -> dict[str, Any]:
        """Return which node has which partition, and which one it told."""
        return {"partition_of": dict(self.partition_of), "told": dict(self._told)}

    def restore(self, state: dict[str, Any]) -> None:
        """Know the nodes that `state` said."""
        self.partition_of.clear()
        self.partition_of.update(state["partition_of"])
        self._told = dict(state["told"])

    def _seat(self, connected: list[int]) -> None:
        """Give each node the partition that it told, or a free slot while that is taken."""
        while self._move(connected):
            pass  # who moved may have left the partition that another one told
        unplaced = [node for node in connected if node not in self.partition_of]
        for node in unplaced:
            taken = set(self.partition_of.values())
            self.partition_of[node] = next(n for n in range(len(taken) + 1) if n not in taken)
        if unplaced:
            log(
                WARNING,
                "handshake: %s nodes told no partition of their own and got free slots; "
                "the same seed will not give the same run again",
                len(unplaced),
            )

    def _move(self, connected: list[int]) -> bool:
        """Give nodes the partition that they told, where no connected node has it."""
        here, holder = set(connected), {slot: node for node, slot in self.partition_of.items()}
        moved = False
        for node in connected:
            wanted, has = self._told.get(node, -1), self.partition_of.get(node, -1)
            gone = holder.get(wanted)
            if wanted < 0 or wanted == has or gone in here:
                continue
            if gone is not None:
                del self.partition_of[gone]  # if it comes back, it is asked again
                log(INFO, "partition %s: a node took it over from one that is gone", wanted)
            holder.pop(has, None)
            holder[wanted], self.partition_of[node] = node, wanted
            moved = True
        return moved

    def _ask(
        self, grid: Grid, nodes: Iterable[int], timeout: float, question: RecordDict
    ) -> dict[int, int]:
        messages = [Message(question, node, MESSAGE_TYPE) for node in nodes]
        told: dict[int, int] = {}
        for reply in grid.send_and_receive(messages, timeout=timeout):
            node = reply.metadata.src_node_id
            if not reply.has_content():
                continue
            for config in reply.content.config_records.values():
                if isinstance(partition := config.get(PARTITION_KEY), int):
                    told[node] = partition
                if self._heard is not None:
                    self._heard(node, config)
        return told
