"""The bytes that a run is expected to take, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fl_darex.compression.downlink import POLICIES
from fl_darex.config import RunConfig
from fl_darex.observers.totals import BUT_FOR_FIRST, baselines, megabytes
from fl_darex.shown import counted


@dataclass(frozen=True)
class Expectation:
    """Bytes of the messages of training.

    Attributes:
        clients: That train in a round.
        rounds: Of the run.
        plain: A message with the whole model.
        up: A client's reply.
        first: A message of round 1.
        later: A message of another round; None: an own policy decides.
        held: Whether clients hold the model before round 1, and are not sent it.
    """

    clients: int
    rounds: int
    plain: int
    up: int
    first: int
    later: int | None
    held: bool

    @classmethod
    def of(cls, config: RunConfig, expected: Any) -> Expectation:
        """Return what is expected of a run.

        Args:
            config: The run's configuration.
            expected: The strategy's check of it, by messages.
        """
        federation = config.federation
        clients, later = federation.sample_size, expected.down_bytes
        if later is not None:
            # Who was not asked in some rounds is sent the steps of all of them.
            later = min(expected.plain_bytes, later * federation.clients // clients)
        sizes = expected.plain_bytes, expected.up_bytes, expected.first_down_bytes
        held = POLICIES.choose(config.compress.downlink).versions
        return cls(clients, federation.rounds, *sizes, later, held)

    def table(self) -> Group:
        """Return rows for messages and for the whole run, and what they are compared with."""
        held = (self.plain - self.first) * self.clients * self.held
        title = f"expected bytes of training, {counted(self.clients, 'client')} a round"
        table = Table(box=None)
        for column in ("about", "a client", "all clients", "dense", "ratio"):
            table.add_column(column, justify="left" if column == "about" else "right")
        for label, size in self._messages():
            cells = ("as the policy decides", "", "", "")
            if size is not None:
                whole = megabytes(size * self.clients, self.plain * self.clients)
                cells = (f"{size / 1e6:,.3f} MB", *whole)
            table.add_row(label, *cells)
        if (total := self._total()) is not None:
            dense = 2 * self.rounds * self.clients * self.plain
            table.add_row(counted(self.rounds, "round"), "", *megabytes(total, dense), style="bold")
            if held:
                table.add_row(BUT_FOR_FIRST, "", *megabytes(total, dense - held))
        return Group(title, table, Text(baselines(held > 0)))

    def _messages(self) -> list[tuple[str, int | None]]:
        later = [("down, a later round", self.later)] if self.rounds > 1 else []
        return [("up, a round", self.up), ("down, round 1", self.first), *later]

    def _total(self) -> int | None:
        if self.later is None and self.rounds > 1:
            return None
        down = self.first + (self.rounds - 1) * (self.later or 0)
        return self.clients * (self.rounds * self.up + down)
