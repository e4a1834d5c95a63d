"""What a person sees of a run: what it is, what it is at, and each round."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart, SaveModel
from fl_darex.observers.header import header
from fl_darex.observers.live import LiveView, Workload
from fl_darex.observers.numbers import Numbers, span
from fl_darex.observers.phases import Phases


class Display:
    """Shows rounds, clients, metric, bytes, speed, memory and time left; an observer of the run.

    On a terminal three live lines; elsewhere a line a round.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.phases = Phases(console)
        self._numbers = Numbers()
        self._view = LiveView(console, self._numbers)
        self._metric_name = ""
        self._waits_for = 0

    def watch(self, engine: object) -> None:
        """Show how many clients run and wait, where an engine says it."""
        if isinstance(engine, Workload):
            self._view.workload = engine

    def started(self, start: RunStart) -> None:
        """Say what is about to run."""
        federation = start.config.federation
        self._metric_name = start.metric_name
        self.phases.end()
        self._console.print(header(start))
        if start.initial_metric is not None:
            self._console.print(f"before round 1: {start.metric_name} {start.initial_metric:.4f}")
        numbers, before = self._numbers, len(start.reports)
        if before:
            self._console.print(f"goes on after round {before} of {federation.rounds}")
        numbers.closed = numbers.before = before
        numbers.failed = sum(report.failures for report in start.reports)
        sent: list[RoundReport | Entry] = [*start.reports, *start.handshake]
        for one in sent:
            numbers.up_bytes += one.up_bytes
            numbers.down_bytes += one.down_bytes
        numbers.rounds, numbers.asked = federation.rounds, federation.sample_size
        self._waits_for = federation.clients
        self.phases.begin("starting the clients")

    def replied(self, entry: Entry) -> None:
        """Count a client as done."""
        if entry.kind == HANDSHAKE:
            self._waits_for -= 1
            if self._waits_for == 0:
                self._show_rounds()
            return
        self._show_rounds()
        numbers = self._numbers
        numbers.up_bytes += entry.up_bytes
        numbers.down_bytes += entry.down_bytes
        if entry.kind in ("train", "evaluate"):
            numbers.replies += 1
            numbers.failed += entry.failed
            numbers.done += entry.kind == "train"

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """Show the round's result."""
        metric = "" if report.metric is None else f"{self._metric_name} {report.metric:.4f}"
        numbers = self._numbers
        numbers.closed, self._view.metric = report.round, metric
        if report.round < numbers.rounds:
            numbers.done = 0
        if not self._console.is_terminal:
            left = numbers.left(time.monotonic())
            yet = f"  {span(left)} left" if left else ""
            self._console.print(
                f"round {report.round}: clients {report.clients - report.failures}"
                f"/{report.clients}  {metric}  up {report.up_bytes / 1e6:.3f} MB  "
                f"down {report.down_bytes / 1e6:.3f} MB  {report.seconds:.1f} s{yet}",
                soft_wrap=True,
            )

    def stop(self) -> None:
        """Take the live lines away."""
        self.phases.stop()
        self._view.stop()

    def _show_rounds(self) -> None:
        if self._numbers.began is None:
            self._numbers.began = time.monotonic()
            self.phases.end()
        if self._console.is_terminal and not self._view.shown:
            self._view.start()
