"""What a person sees of a run: what it is, what it is at, and each round."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart, SaveModel
from fl_darex.observers.header import header
from fl_darex.observers.phases import Phases


class Display:
    """Shows rounds, clients done, metric and megabytes; an observer of the run.

    On a terminal one live line; elsewhere a line a round.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            _plain("round {task.fields[round]}/{task.fields[rounds]}"),
            BarColumn(bar_width=24),
            _plain("clients {task.fields[done]}/{task.fields[asked]}"),
            _plain("{task.fields[metric]}"),
            _plain("up {task.fields[up]:.2f} MB  down {task.fields[down]:.2f} MB"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.phases = Phases(console)
        self._line: TaskID | None = None
        self._metric_name = ""
        self._up = self._down = 0
        self._done = self._waits_for = 0

    def started(self, start: RunStart) -> None:
        """Say what is about to run."""
        federation = start.config.federation
        self._metric_name = start.metric_name
        self.phases.end()
        self._console.print(header(start))
        if start.initial_metric is not None:
            self._console.print(f"before round 1: {start.metric_name} {start.initial_metric:.4f}")
        if start.done:
            self._console.print(f"goes on after round {start.done} of {federation.rounds}")
        self._line = self._progress.add_task(
            "",
            total=federation.rounds * federation.sample_size,
            completed=start.done * federation.sample_size,
            round=start.done + 1,
            rounds=federation.rounds,
            done=0,
            asked=federation.sample_size,
            metric="",
            up=0.0,
            down=0.0,
        )
        self._waits_for = federation.clients
        self.phases.begin("starting the clients")

    def replied(self, entry: Entry) -> None:
        """Count a client as done."""
        if self._line is None:
            return
        if entry.kind == HANDSHAKE:
            self._waits_for -= 1
            if self._waits_for == 0:
                self._show_rounds()
            return
        self._show_rounds()
        self._up += entry.up_bytes
        self._down += entry.down_bytes
        if entry.kind == "train":
            self._done += 1
            self._progress.advance(self._line)
        self._progress.update(self._line, done=self._done, up=self._up / 1e6, down=self._down / 1e6)

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """Show the round's result."""
        metric = "" if report.metric is None else f"{self._metric_name} {report.metric:.4f}"
        self._done = 0
        if self._line is not None:
            self._progress.update(self._line, round=report.round + 1, done=0, metric=metric)
        if not self._console.is_terminal:
            self._console.print(
                f"round {report.round}: clients {report.clients - report.failures}"
                f"/{report.clients}  {metric}  up {report.up_bytes / 1e6:.3f} MB  "
                f"down {report.down_bytes / 1e6:.3f} MB  {report.seconds:.1f} s",
                soft_wrap=True,
            )

    def stop(self) -> None:
        """Take the live line away."""
        self.phases.stop()
        self._progress.stop()

    def _show_rounds(self) -> None:
        if not self._progress.live.is_started:
            self.phases.end()
            self._progress.start()


def _plain(format_: str) -> TextColumn:
    return TextColumn(format_, markup=False)
