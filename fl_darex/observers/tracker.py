"""A run in an experiment tracker: settings, each round's numbers, the summary, how it ended."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from logging import WARNING
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from flwr.common.logger import log

from fl_darex.errors import one_line
from fl_darex.flower.ledger import Entry
from fl_darex.flower.private import flattened
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers.observer import RoundReport, RunStart, SaveModel
from fl_darex.observers.run_folder import reason_of
from fl_darex.observers.summary import summarise

Result = TypeVar("Result")
Values = Mapping[str, Any]
Numbers = Mapping[str, float]


class Recording(Protocol):
    """What a tracker does with one run."""

    def log(self, numbers: Numbers, step: int) -> None:
        """Keep a round's numbers; step 0 is before the first."""

    def end(self, status: str, reason: str, summary: Values) -> None:
        """Keep what a run came to: ``finished``, ``interrupted`` or ``failed``, and why."""


Begin = Callable[[Values], Recording]
"""Begins to record a run with these settings."""


class Tracker:
    """An observer that hands a run to an experiment tracker; a context manager around the run.

    A tracker that fails loses its record and not the run: it is one line in the log, and the
    tracker hears no more, since many try a server that is gone for minutes each time.

    Args:
        name: Of the tracker, for the log.
        begin: Begins a record.
    """

    def __init__(self, name: str, begin: Begin) -> None:
        self._name, self._begin = name, begin
        self._recording: Recording | None = None
        self._start: RunStart | None = None
        self._reports: list[RoundReport] = []
        self._handshake: list[Entry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        recording = self._recording
        if recording is None or self._start is None:
            return
        rounds, done = self._start.config.federation.rounds, len(self._reports)
        status, reason = "finished", ""
        if isinstance(error, KeyboardInterrupt):
            status, reason = "interrupted", str(error)
        elif error is not None:
            status, reason = "failed", reason_of(error)
        elif done < rounds:
            status, reason = "failed", f"the run ended after {done} of {rounds} rounds"
        self._tell(lambda: recording.end(status, reason, self._summary()))
        self._recording = None

    def started(self, start: RunStart) -> None:
        """Begin to record, with all settings."""
        self._start = start
        self._reports, self._handshake = [*start.reports], [*start.handshake]
        settings = flattened(tomllib.loads(start.config.to_toml()))
        self._recording = self._tell(lambda: self._begin(settings))
        if start.initial_metric is not None and not start.reports:
            self._log({start.metric_name: start.initial_metric}, 0)

    def replied(self, entry: Entry) -> None:
        """Remember handshakes, which belong to no round."""
        if entry.kind == HANDSHAKE:
            self._handshake.append(entry)

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """Record a round."""
        self._reports.append(report)
        if self._start is not None:
            numbers = numbers_of(report, self._start.metric_name, self._summary())
            self._log(numbers, report.round)

    def _log(self, numbers: Numbers, step: int) -> None:
        if (recording := self._recording) is not None:
            self._tell(lambda: recording.log(numbers, step))

    def _tell(self, what: Callable[[], Result]) -> Result | None:
        try:
            return what()
        except Exception as error:
            self._recording = None
            reason = one_line(reason_of(error))
            log(WARNING, "%s records no more of this run, which goes on: %s", self._name, reason)
            return None

    def _summary(self) -> dict[str, Any]:
        if self._start is None:
            return {}
        return summarise(self._start.config, self._start, self._reports, self._handshake)


def numbers_of(report: RoundReport, metric: str, summary: Values) -> dict[str, float]:
    """Return a round's numbers by the names that trackers show them under.

    Args:
        report: The round.
        metric: The name of the task's metric.
        summary: Of the run so far, for ``bytes/..._so_far`` and ``ratio``.
    """
    numbers = {
        metric: report.metric,
        f"test_{metric}": report.test_metric,
        "loss": report.loss,
        "train_loss": report.train_loss,
        "clients": report.clients,
        "failures": report.failures,
        "seconds": report.seconds,
        "q": report.q,
        "rho": report.rho,
        "pull": report.pull,
        "bytes/up": report.up_bytes,
        "bytes/down": report.down_bytes,
        "bytes/up_so_far": summary["up_bytes"],
        "bytes/down_so_far": summary["down_bytes"],
        "bytes/total_so_far": summary["total_bytes"],
        "ratio": summary["total_ratio"],
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}
