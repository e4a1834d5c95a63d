"""A view of a Grid in which nodes are known by partition, and a random state of the run's own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fl_darex.wire.grid_view import GridView
from fl_darex.wire.handshake import Roster


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
