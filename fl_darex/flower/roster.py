"""Which node has which partition: each node is asked once.

Node ids are random and carry no partition, but seeds, masks and sampling go by partition, so
that a run gives the same result on every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_darex.flower.model_note import GREETING_KEY, Greeting
from fl_darex.flower.records import arrays_in, configs_in

HANDSHAKE = "handshake"
PARTITION_KEY = "partition-id"

ASKED_AS = "train"
"""Type of the message that asks. Flower calls mods only for messages that an app has a handler for,
and this handler every app has; the question itself is told by its content."""

MESSAGE_TYPE = f"query.{HANDSHAKE}"
"""Type of the question in earlier versions, which apps needed a handler for; still answered."""

_MOST = 2**63  # partitions are slots of the wire format


def answer(message: Message, partition: int | None) -> Message:
    """Return a client's answer to the handshake; None: it has no partition of its own."""
    content = RecordDict()
    if partition is not None:
        content[HANDSHAKE] = ConfigRecord({PARTITION_KEY: partition})
    return Message(content, reply_to=message)


def is_handshake(message: Message) -> bool:
    """Return whether a message asks for the partition, by its content or the earlier type."""
    if message.metadata.message_type == MESSAGE_TYPE:
        return True
    content = message.content
    return not arrays_in(content) and any(
        GREETING_KEY in config for config in configs_in(content).values()
    )


def partition_of(context: Context) -> int | None:
    """Return the partition that a node's configuration names; None: it names no whole number."""
    return _partition(context.node_config.get(PARTITION_KEY))


def _partition(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None


def _bare_question() -> RecordDict:
    config = ConfigRecord()
    Greeting(run="0" * 16, first="").attach(config)
    return RecordDict({"config": config})


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
        asks: Whether nodes are asked; else they have slots in the order of their ids.
    """

    def __init__(
        self,
        partition_of: dict[int, int],
        heard: Callable[[int, ConfigRecord], None] | None = None,
    ) -> None:
        self.partition_of = partition_of
        self.asks = True
        self._heard = heard
        self._told: dict[int, int] = {}

    def update(self, grid: Grid, timeout: float, question: RecordDict | None = None) -> list[int]:
        """Ask the nodes that are new and return all connected nodes in partition order.

        Args:
            grid: Where the nodes are.
            timeout: Seconds to wait for answers.
            question: What the new nodes are sent, with a `Greeting` in it; default: that alone.
        """
        nodes = sorted(grid.get_node_ids())
        new = [node for node in nodes if node not in self.partition_of]
        if new and self.asks:
            told = self._ask(grid, new, timeout, question or _bare_question())
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
        if unplaced and not self.asks:
            log(INFO, "%s nodes have free slots, in the order of their ids", len(unplaced))
        elif unplaced:
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
        messages = [Message(question, node, ASKED_AS) for node in nodes]
        told: dict[int, int] = {}
        for reply in grid.send_and_receive(messages, timeout=timeout):
            node = reply.metadata.src_node_id
            if not reply.has_content():
                continue
            for config in configs_in(reply.content).values():
                if (partition := _partition(config.get(PARTITION_KEY))) is not None:
                    told[node] = partition
                if self._heard is not None:
                    self._heard(node, config)
        return told
