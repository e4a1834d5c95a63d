"""A view of a Grid in which nodes are known by partition, and a random state of the run's own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_darex.wire.handshake import Roster


class OrderedGrid(Grid):
    """Lists nodes in partition order; everything else is the grid's own.

    Flower's strategies sample positions of the list of nodes. With a fixed order and a seeded
    generator the same partitions are drawn on every engine, by the strategy's own rule.
    """

    def __init__(self, grid: Grid, roster: Roster, timeout: float) -> None:
        self._grid = grid
        self._roster = roster
        self._timeout = timeout

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes in partition order; new ones are asked first."""
        return self._roster.update(self._grid, self._timeout)

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid.run`."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid.create_message`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid.send_and_receive`."""
        return self._grid.send_and_receive(messages, timeout=timeout)


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Seed Python's global generator, which Flower's sampling uses, and restore it afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
