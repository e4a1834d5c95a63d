"""Which node has which partition: each node is asked once.

Node ids are random and carry no partition, but seeds, masks and sampling go by partition, so
that a run gives the same result on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import INFO, WARNING

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_darex.wire.ledger import HANDSHAKE

PARTITION_KEY = "partition-id"
MESSAGE_TYPE = f"query.{HANDSHAKE}"


def answer(message: Message, partition: int) -> Message:
    """Return a client's answer to the handshake."""
    content = RecordDict({HANDSHAKE: ConfigRecord({PARTITION_KEY: partition})})
    return Message(content, reply_to=message)


class Roster:
    """The partitions of the nodes that are known so far.

    A node that does not answer, or names a partition that another node has, gets the lowest
    free slot; the run is then valid but not repeatable, because node ids are random.

    Args:
        partition_of: Partition or slot by node id; filled in as nodes answer.
        heard: Called with the node and each configuration in its answer.

    Attributes:
        partition_of: Partition or slot by node id.
    """

    def __init__(
        self,
        partition_of: dict[int, int],
        heard: Callable[[int, ConfigRecord], None] | None = None,
    ) -> None:
        self.partition_of = partition_of
        self._heard = heard

    def update(self, grid: Grid, timeout: float, question: RecordDict | None = None) -> list[int]:
        """Ask the nodes that are new and return all connected nodes in partition order.

        Args:
            grid: Where the nodes are.
            timeout: Seconds to wait for answers.
            question: What the new nodes are sent; default: nothing.
        """
        nodes = list(grid.get_node_ids())
        if new := sorted(set(nodes) - set(self.partition_of)):
            self._enter(new, self._ask(grid, new, timeout, question or RecordDict()))
        return sorted(nodes, key=self.partition_of.__getitem__)

    def _enter(self, new: list[int], told: dict[int, int]) -> None:
        taken = set(self.partition_of.values())
        unplaced = []
        for node in new:
            partition = told.get(node, -1)
            if partition < 0 or partition in taken:
                unplaced.append(node)
            else:
                self.partition_of[node] = partition
                taken.add(partition)
        for node in unplaced:
            slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            self.partition_of[node] = slot
            taken.add(slot)
        log(INFO, "handshake: %s nodes, %s told their partition", len(new), len(told))
        if unplaced:
            log(
                WARNING,
                "handshake: %s nodes told no partition of their own and got free slots; "
                "the same seed will not give the same run again",
                len(unplaced),
            )

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
