"""What a terminal shows while the rounds go on: three lines, drawn anew some times a second."""

from __future__ import annotations

import time
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fl_darex.observers.numbers import Numbers, resident, size, span


@runtime_checkable
class Workload(Protocol):
    """What an engine of ours can say at any moment, from any thread."""

    @property
    def running(self) -> int:
        """Clients that are at work."""

    @property
    def waiting(self) -> int:
        """Clients that have been asked and wait for a worker."""


class LiveView:
    """Shows a run's numbers, below whatever else is printed.

    Args:
        console: A terminal.
        numbers: What to show, as it is when it is drawn.

    Attributes:
        metric: The last round's metric, in words.
        workload: The engine, where it tells.
    """

    def __init__(self, console: Console, numbers: Numbers) -> None:
        self.metric = ""
        self.workload: Workload | None = None
        self._console, self._numbers = console, numbers
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self.lines, transient=True)

    @property
    def shown(self) -> bool:
        """Whether it is on the terminal."""
        return self._live.is_started

    def start(self) -> None:
        """Begin to show."""
        self._live.start()

    def stop(self) -> None:
        """Take the lines away; may be called twice."""
        self._live.stop()

    def lines(self) -> Constrain:
        """Return what is shown now."""
        numbers, now = self._numbers, time.monotonic()
        if self.workload is not None:
            numbers.pending = self.workload.running + self.workload.waiting
        first = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=numbers.share, width=24)
        current = min(numbers.closed + 1, numbers.rounds)
        first.add_row(
            self._spinner,
            Text(f"round {current}/{numbers.rounds}"),
            bar,
            Text(f"{span(numbers.seconds(now))}, {span(numbers.left(now))} left"),
        )
        lines = Group(first, self._clients(now), self._totals())
        # Where a full last line ends, the terminal's own "^C" would begin another one.
        return Constrain(lines, max(self._console.width - 3, 1))

    def _clients(self, now: float) -> Text:
        numbers = self._numbers
        parts: list[Any] = [f"  clients {numbers.trained}/{numbers.asked}"]
        if self.workload is not None:
            parts.append(f"  {self.workload.running} running  {self.workload.waiting} queued")
        parts.append((f"  {numbers.failed} failed", "red" if numbers.failed else ""))
        parts.append(f"  {numbers.a_second(now):.1f} a second")
        return _line(*parts)

    def _totals(self) -> Text:
        numbers, memory = self._numbers, resident()
        parts = [self.metric, f"up {size(numbers.up_bytes)}", f"down {size(numbers.down_bytes)}"]
        if memory is not None:
            parts.append(f"this process {size(memory)}")
        return _line("  ", "  ".join(filter(None, parts)))


def _line(*parts: Any) -> Text:
    """Return a line that a narrow terminal cuts: one more line would leave its rest behind."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
