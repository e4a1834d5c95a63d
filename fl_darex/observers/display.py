"""What a person sees of a run: live progress, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart, SaveModel


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
            TextColumn("round {task.fields[round]}/{task.fields[rounds]}"),
            BarColumn(bar_width=24),
            TextColumn("clients {task.fields[done]}/{task.fields[asked]}"),
            TextColumn("{task.fields[metric]}"),
            TextColumn("up {task.fields[up]:.2f} MB  down {task.fields[down]:.2f} MB"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._line: TaskID | None = None
        self._metric_name = ""
        self._up = self._down = 0
        self._done = 0

    def started(self, start: RunStart) -> None:
        """Say what is about to run."""
        federation, compress = start.config.federation, start.config.compress
        self._metric_name = start.metric_name
        how = "dense" if compress.method == "dense" else f"{compress.method}, p = {compress.p:g}"
        self._console.print(
            f"{start.config.task.name}: {start.parameters:,} parameters, "
            f"{federation.clients} clients, {federation.sample_size} a round, "
            f"{federation.rounds} rounds, {start.config.train.optimizer}, {how}"
        )
        if start.initial_metric is not None:
            self._console.print(f"before round 1: {start.metric_name} {start.initial_metric:.4f}")
        self._line = self._progress.add_task(
            "",
            total=federation.rounds * federation.sample_size,
            round=1,
            rounds=federation.rounds,
            done=0,
            asked=federation.sample_size,
            metric="",
            up=0.0,
            down=0.0,
        )
        self._progress.start()

    def replied(self, entry: Entry) -> None:
        """Count a client as done."""
        if self._line is None or entry.kind == HANDSHAKE:
            return
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
        self._progress.stop()


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the final table of a run from its ``summary.json``."""
    name = summary["metric_name"]
    table = Table(title=f"{summary['rounds']} rounds, {summary['seconds']:.0f} s")
    for column in ("", "sent", "dense", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for label, key in (("up", "up"), ("down", "down"), ("total, with handshake", "total")):
        sent, dense = summary[f"{key}_bytes"], summary[f"dense_{key}_bytes"]
        ratio = f"{dense / sent:,.1f}x" if sent else "-"
        table.add_row(label, f"{sent / 1e6:,.3f} MB", f"{dense / 1e6:,.3f} MB", ratio)
    table.add_section()
    for label, key in (("before round 1", "initial_metric"), ("best", "best_metric")):
        table.add_row(f"{name}, {label}", _number(summary[key]), "", "")
    table.add_row(f"[bold]{name}, final", f"[bold]{_number(summary['final_metric'])}", "", "")
    if summary["test_metric"] is not None:
        table.add_row(f"{name}, final, on test", _number(summary["test_metric"]), "", "")
    if summary["failures"]:
        table.add_row("failed replies", str(summary["failures"]), "", "")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
