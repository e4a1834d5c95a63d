"""Views of a Flower Grid: nodes in partition order, and a second try with the whole model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_darex.flower.model_note import MISSING
from fl_darex.flower.private import NodeInfo, Run
from fl_darex.flower.roster import Roster


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float | None, pause: float
) -> tuple[list[Message], set[str]]:
    """Push messages and pull replies, at most ``timeout`` seconds, with a pause where none came.

    Returns:
        The replies, and the ids of the messages that none came for.
    """
    waiting = {key for key in grid.push_messages(messages) if key}
    end = None if timeout is None else time.monotonic() + timeout
    replies: list[Message] = []
    while waiting and (end is None or time.monotonic() < end):
        arrived = list(grid.pull_messages(waiting))
        replies.extend(arrived)
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        if waiting and not arrived:
            time.sleep(pause)
    return replies, waiting


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

    def __init__(self, grid: Grid, again: Callable[[Message], Message]) -> None:
        super().__init__(grid)
        self._again = again

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds in all."""
        end = None if timeout is None else time.monotonic() + timeout
        asked = list(messages)
        replies = self._exchange(asked, timeout)
        lacking = {
            reply.metadata.reply_to_message_id
            for reply in replies
            if reply.has_content() and MISSING in reply.content
        }
        if not lacking:
            return replies
        told = [r for r in replies if r.metadata.reply_to_message_id not in lacking]
        retry = [self._again(m) for m in asked if m.metadata.message_id in lacking]
        left = None if end is None else max(0.0, end - time.monotonic())
        return [*told, *self._exchange(retry, left)]

    def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
        """Return replies, each in the name of the client that was asked.

        Where a client died while it sent its reply, Flower says so in the server's own name.
        """
        replies = list(self.grid.send_and_receive(asked, timeout=timeout))
        by_id = {message.metadata.message_id: message for message in asked}
        for index, reply in enumerate(replies):
            message = by_id.get(reply.metadata.reply_to_message_id)
            if message is None or not reply.has_error():
                continue
            if reply.metadata.src_node_id != message.metadata.dst_node_id:
                replies[index] = Message(reply.error, reply_to=message)
        return replies
