"""What a study, or a few runs, came to: every run with what was measured, before any table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_darex.study.curves import Curve

FINISHED, MISSING, UNREADABLE = "finished", "missing", "unreadable"
SEED = "federation.seed"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of an arm.

    Attributes:
        arm: Name of the arm.
        point: Place in the grid, from 0.
        seed: Its seed.
        folder: Its run folder, which need not exist.
        status: That of ``summary.json``; also ``missing``, and ``unreadable`` for a damaged folder.
        reason: Why it did not finish; empty: nobody said.
        curve: What was measured; None where nothing can be read.
        config: Its settings by flat keys; empty likewise.
        kinds: Bytes, both ways, by kind of exchange.
    """

    arm: str
    point: int
    seed: int
    folder: Path
    status: str
    reason: str = ""
    curve: Curve | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all its rounds are there."""
        return self.status == FINISHED and self.curve is not None

    @property
    def final(self) -> float | None:
        """The metric after the last round; NaN if that was no number, None if nobody measured it.

        JSON has no NaN: a metric that was none is null in ``rounds.jsonl`` as one that was not
        measured, but a run that was measured at all is measured after its last round.
        """
        if self.curve is None:
            return None
        found, summary = self.curve.final, self.curve.summary
        up_to_date = summary.get("rounds", len(self.curve.rounds)) == len(self.curve.rounds)
        if found is not None:
            lost = up_to_date and "final_metric" in summary and summary["final_metric"] is None
            return math.nan if lost else found
        evaluated = self.config.get("federation.evaluate", "none") != "none"
        return math.nan if self.finished and evaluated and self.curve.rounds else None

    @property
    def sent(self) -> tuple[int, int, int]:
        """Bytes up, down and, with the handshake, in all."""
        if self.curve is None or not self.curve.rounds:
            extra = self.curve.handshake if self.curve else 0
            return 0, 0, extra
        return self.curve.up[-1], self.curve.down[-1], self.curve.total[-1]

    @property
    def progress(self) -> str:
        """How far it is, in words: ``"running, 4 of 20 rounds"``."""
        if self.curve is None or self.status in (FINISHED, MISSING):
            return self.status
        planned = self.config.get("federation.rounds")
        of = f" of {planned}" if planned else ""
        return f"{self.status}, {len(self.curve.rounds)}{of} rounds"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in seed and point alone.

    Attributes:
        name: Unique among the arms.
        settings: What makes the arm, by flat keys.
        chosen: Settings found by tuning, for each point; empty without tuning.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    chosen: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a search for an arm's settings; ``metric`` None: it came to nothing."""

    arm: str
    point: int
    settings: Mapping[str, Any]
    metric: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that tables, figures and the page are made of.

    Attributes:
        title: Of the study; made from the folders' names where there is none.
        command: What ran it; empty: not known.
        metric_name: What was measured; higher is better.
        reference: Name of the arm that others are compared with; None: there is none.
        target: Bytes count until this fraction of the reference's final metric; None: there is
            no target.
        budgets: Bytes up and down, of a whole run, at which the metric is read.
        links: Mbit/s up and down of each client.
        seeds: All of them.
        grid: Settings of each point; a single empty one where there is no grid.
        arms: In the order of the study.
        runs: Every run that was planned: one for each arm, point and seed.
        tuning: Trials, in the order of the study.
        remarks: What the study has to say about itself.
        versions: Of Python and of packages.
        folder: The study's folder, or the first run's.
        study: Whether it was read from a ``study.json``.
    """

    title: str
    command: str = ""
    metric_name: str = "metric"
    reference: str | None = None
    target: float | None = None
    budgets: Sequence[float] = ()
    links: Sequence[tuple[float, float]] = ()
    seeds: Sequence[int]
    grid: Sequence[Mapping[str, Any]] = ({},)
    arms: Sequence[Arm]
    runs: Sequence[Run]
    tuning: Sequence[Trial] = ()
    remarks: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: Path
    study: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the arms."""
        return [arm.name for arm in self.arms]

    @property
    def points(self) -> range:
        """Places in the grid."""
        return range(len(self.grid))

    @property
    def unfinished(self) -> list[Run]:
        """Runs that count in no mean, because they are not there or not whole."""
        return [run for run in self.runs if not run.finished]

    def planned(self, arm: str, point: int) -> list[Run]:
        """Return all runs of an arm at a point, by seed."""
        found = (run for run in self.runs if (run.arm, run.point) == (arm, point))
        return sorted(found, key=lambda run: run.seed)

    def whole(self, arm: str, point: int) -> list[Run]:
        """Return the finished runs of an arm at a point, by seed."""
        return [run for run in self.planned(arm, point) if run.finished]

    def shown(self, arm: str, point: int) -> list[Run]:
        """Return the runs that a row or a line is made of: the finished ones.

        Where there is none, they are those that have at least one round, so that one can follow a
        run that goes on.
        """
        partly = [r for r in self.planned(arm, point) if r.curve is not None and r.curve.rounds]
        return self.whole(arm, point) or partly

    def point_name(self, point: int) -> str:
        """Return a point's settings as a heading; empty where there is no grid."""
        return ", ".join(f"{key} = {value}" for key, value in self.grid[point].items())
