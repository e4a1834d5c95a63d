"""Views of a Flower Grid: nodes in partition order, and a second try with the whole model."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from flwr.app import Message, Metadata, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_darex import checks
from fl_darex.flower.model_note import MISSING
from fl_darex.flower.private import SERVER_NODE_ID, NodeInfo, Run
from fl_darex.flower.roster import Roster

Again = Callable[[Message], Message]
"""Returns the message that takes the place of one that a client could not use."""


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    timeout: float | None,
    pause: float,
    again: Again | None = None,
) -> tuple[list[Message], set[str]]:
    """Push messages and pull replies, with a pause where none came.

    A reply counts once, if it answers one of these messages, in its run and from the node that was
    asked; any other is dropped with a line in the log. Where a client died while it sent its reply,
    Flower says so in the server's own name; here it is said in the client's.

    Args:
        grid: Where they go.
        messages: For any nodes.
        timeout: Seconds for all of it; None: for ever.
        pause: Seconds between two looks.
        again: What a client is sent at once, while others still work, that answers that it lacks
            something; None: nothing. However late that is, half the timeout is left for it.

    Returns:
        The replies, and the ids of the messages that none came for.

    Raises:
        ValueError: If the timeout is no number of seconds.
    """
    checks.seconds("timeout", timeout)
    timeout = math.inf if timeout is None else timeout
    waiting = _pushed(grid, messages)
    end = (start := time.monotonic()) + timeout  # grids of one process train while they push
    tried: set[str] = set()
    replies: list[Message] = []
    while waiting and time.monotonic() < end:
        arrived = list(grid.pull_messages(waiting.keys()))
        lacking = []
        for reply in arrived:
            if (message := _answered(reply, waiting)) is None:
                continue
            first = reply.metadata.reply_to_message_id not in tried
            if again is not None and first and reply.has_content() and MISSING in reply.content:
                lacking.append(message)
            else:
                replies.append(_in_own_name(reply, message))
        if again is not None and lacking:
            more = _pushed(grid, map(again, lacking))
            waiting |= more
            tried |= more.keys()
            end = max(end, min(time.monotonic() + timeout / 2, start + 1.5 * timeout))
        elif waiting and not arrived and pause:
            time.sleep(pause)
    return replies, set(waiting)


def _pushed(grid: Grid, messages: Iterable[Message]) -> dict[str, Message]:
    """Push messages and return them by the ids that they got; those without were not sent."""
    listed = list(messages)
    ids = list(grid.push_messages(listed))
    if len(ids) < len(listed):  # some grids leave out those that cannot be sent
        listed = [message for message in listed if message.metadata.message_id in set(ids)]
    return {key: message for key, message in zip(ids, listed, strict=False) if key}


def _answered(reply: Message, waiting: dict[str, Message]) -> Message | None:
    """Take the message that a reply answers from those that wait; None: it answers none."""
    message = waiting.get(key := reply.metadata.reply_to_message_id)
    odd = "nobody asked, or was answered before" if message is None else ""
    if message is not None and not (odd := stranger(reply, message.metadata)):
        return waiting.pop(key)
    log(WARNING, "a reply of node %s is dropped: %s", reply.metadata.src_node_id, odd)
    return None


def _in_own_name(reply: Message, message: Message) -> Message:
    """Return a reply of the node that was asked, where the server itself said that it died."""
    if reply.metadata.src_node_id == message.metadata.dst_node_id:
        return reply
    return Message(reply.error, reply_to=message)


def stranger(reply: Message, asked: Metadata) -> str:
    """Return why a reply is not that of the node that was asked, in words; empty: it is."""
    own = reply.metadata
    if own.run_id != asked.run_id:
        return f"it is of run {own.run_id}, not {asked.run_id}"
    by_server = reply.has_error() and own.src_node_id == SERVER_NODE_ID
    if own.src_node_id != asked.dst_node_id and not by_server:
        return f"it comes from node {own.src_node_id}, and node {asked.dst_node_id} was asked"
    return ""


class GridView(Grid):
    """Passes everything on to another grid; views override what they change.

    Args:
        grid: Any Flower Grid.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid.run`."""
        return self.grid.run

    def create_message(self, *args: Any, **settings: Any) -> Message:
        """See `Grid.create_message`."""
        return self.grid.create_message(*args, **settings)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid.get_nodes`."""
        return self.grid.get_nodes()

    @property
    def pull_interval(self) -> float:
        """Seconds between two looks for replies, as the grid itself has it."""
        return float(getattr(self.grid, "pull_interval", 3.0))

    def forget(self, message_ids: Iterable[str]) -> None:
        """Hear that nobody waits for replies to these messages any more."""
        forget = getattr(self.grid, "forget", None)  # Flower's own have none
        if forget is not None:
            forget(message_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        return self.grid.send_and_receive(messages, timeout=timeout)


class OrderedGrid(GridView):
    """Lists nodes in partition order; everything else is the grid's own.

    Flower's strategies sample positions of the list of nodes. With a fixed order and a seeded
    generator the same partitions are drawn on every engine, by the strategy's own rule.
    """

    def __init__(
        self, grid: Grid, roster: Roster, timeout: float, question: RecordDict | None = None
    ) -> None:
        super().__init__(grid)
        self._roster = roster
        self._timeout = timeout
        self._question = question

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes in partition order; new ones are asked first."""
        return self._roster.update(self.grid, self._timeout, self._question)


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seed Python's global generator, which Flower's sampling uses, and restore it afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class FallbackGrid(GridView):
    """Asks again, with everything, where a client answers that something is missing.

    Args:
        grid: Any Flower Grid.
        again: Returns the message that takes the place of one that a client could not use.
    """

    def __init__(self, grid: Grid, again: Again) -> None:
        super().__init__(grid)
        self._again = again

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, as `exchange` does."""
        replies, late = exchange(self.grid, messages, timeout, self.pull_interval, self._again)
        self.forget(late)
        return replies
