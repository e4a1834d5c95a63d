"""The table that a study is about: a row for each arm, the metric beside the bytes that it took.

No figure and no HTML: the page, the copies of the table and a terminal all show these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

from fl_darex.study.curves import Curve
from fl_darex.study.estimates import Estimate, Reached, estimate, reached
from fl_darex.study.measures import area, at_budget, pareto, seconds_to_target, to_target
from fl_darex.study.result import Result, Run


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm. Bytes are those of a whole run: the mean over its runs.

    Attributes:
        arm: Its name.
        state: Empty; or what there is of an arm without a finished run at each point. It is
            compared with no other; where no run has finished at all, numbers are those so far.
        runs: How many runs the numbers are of.
        planned: How many there should be.
        final: The metric after the last round.
        gap: What it is above the reference's, paired by seed and point; None for the reference.
        up: Bytes from clients to the server.
        down: Bytes from the server to clients.
        total: Both, and the handshake.
        ratio: Bytes of the same exchanges with whole models, over ``total``.
        to_target: Bytes, both ways, until the target.
        budgets: The metric at each budget.
        area: The mean of the metric over the logarithm of bytes.
        seconds: Time on the wire until the target, for each link.
    """

    arm: str
    state: str = ""
    runs: int = 0
    planned: int = 0
    final: Estimate | None = None
    gap: Estimate | None = None
    up: float | None = None
    down: float | None = None
    total: float | None = None
    ratio: float | None = None
    to_target: Reached | None = None
    budgets: Sequence[Estimate | None] = ()
    area: Estimate | None = None
    seconds: Sequence[Reached | None] = ()


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Rows by bytes to the target; arms that lack runs or reach it not always come after them.

    Attributes:
        result: What they were made of.
        points: The grid points that they are about.
        rows: A row for each arm.
        span: Bytes from and to which areas count; None with several points, or without any area.
    """

    result: Result
    points: Sequence[int]
    rows: Sequence[Row]
    span: tuple[float, float] | None

    @property
    def front(self) -> list[Row]:
        """The rows that no other beats in both: fewer bytes, better final metric."""
        rows = [row for row in self.rows if _comparable(row)]
        points = [(row.total or 0.0, row.final.mean) for row in rows if row.final]
        return [rows[place] for place in pareto(points)]


def headline(result: Result, points: Sequence[int] | None = None) -> Headline:
    """Return the table of a result.

    Args:
        result: The runs.
        points: Grid points that it is about; None: all. With several points means are over
            points, of the means over seeds.
    """
    points = list(result.points) if points is None else list(points)
    measured = _Measured(result, points)
    rows = sorted((measured.row(name) for name in result.names), key=_place)
    spans = [measured.spans[point] for point in points]
    return Headline(
        result=result, points=points, rows=rows, span=spans[0] if len(spans) == 1 else None
    )


def _comparable(row: Row) -> bool:
    return not row.state and row.final is not None and math.isfinite(row.final.mean)


def _place(row: Row) -> tuple[int, float, float]:
    took = row.to_target
    whole = row.runs == row.planned and not row.state
    there = 2 if took is None or took.mean is None else 0 if took.all and whole else 1
    total = math.inf if row.total is None else row.total
    return there, took.mean if took and took.mean is not None else 0.0, total


def targets(result: Result) -> dict[tuple[int, int], float]:
    """Return the metric to reach, by point and seed: a fraction of the reference's final one.

    There is none where the reference has not finished, or came to nothing above 0, of which a
    fraction would say nothing.
    """
    if result.reference is None or result.target is None:
        return {}
    found = {}
    for point in result.points:
        for run in result.whole(result.reference, point):
            if run.final is not None and math.isfinite(run.final) and run.final > 0:
                # Rounding decides nothing: .9 * .8 is a bit more than .72.
                found[point, run.seed] = result.target * run.final * (1 - 1e-12)
    return found


class _Measured:
    """Measures of runs, by arm, for some points."""

    def __init__(self, result: Result, points: Sequence[int]) -> None:
        self._result, self._points = result, points
        self._targets = targets(result)
        self.spans = {point: _span(result, point) for point in points}

    def row(self, arm: str) -> Row:
        """Return an arm's row: of its finished runs, or, without any, of those that go on."""
        result, points = self._result, self._points
        planned = [run for point in points for run in result.planned(arm, point)]
        table = [result.whole(arm, point) for point in points]
        state = "" if all(table) else _state(planned, sum(map(bool, table)), len(points))
        if not any(table):
            table = [result.shown(arm, point) for point in points]
        runs = [run for row in table for run in row]
        if not runs:
            return Row(arm=arm, state=state, planned=len(planned))
        up, down, total = (mean(run.sent[way] for run in runs) for way in range(3))
        dense = sum(r.curve.summary.get("dense_total_bytes", 0) for r in runs if r.curve)
        return Row(
            arm=arm,
            state=state,
            runs=len(runs),
            planned=len(planned),
            final=_estimate(table, lambda run: run.final),
            gap=None if state else self._gap(arm),
            up=up,
            down=down,
            total=total,
            ratio=dense / (total * len(runs)) if total and dense else None,
            to_target=self._reached(runs, _bytes_to),
            budgets=[_estimate(table, partial(_at, budget)) for budget in result.budgets],
            area=None if state else _estimate(table, self._area),
            seconds=[self._reached(runs, partial(_seconds_to, link)) for link in result.links],
        )

    def _gap(self, arm: str) -> Estimate | None:
        reference = self._result.reference
        if reference is None or arm == reference:
            return None
        table = []
        for point in self._points:
            theirs = {run.seed: run.final for run in self._result.whole(reference, point)}
            pairs = ((r.final, theirs.get(r.seed)) for r in self._result.whole(arm, point))
            table.append([a - b for a, b in pairs if a is not None and b is not None])
        return estimate(table)

    def _reached(
        self, runs: Sequence[Run], took: Callable[[Curve, float], float | None]
    ) -> Reached | None:
        keyed = ((run.curve, self._targets.get((run.point, run.seed))) for run in runs)
        pairs = [(curve, target) for curve, target in keyed if curve and target is not None]
        return reached([took(curve, target) for curve, target in pairs])

    def _area(self, run: Run) -> float | None:
        span = self.spans[run.point]
        return area(run.curve, *span) if run.curve and span else None


def _estimate(
    table: Sequence[Sequence[Run]], measure: Callable[[Run], float | None]
) -> Estimate | None:
    measured = ([measure(run) for run in runs] for runs in table)
    return estimate([[value for value in row if value is not None] for row in measured])


def _at(budget: float, run: Run) -> float | None:
    return at_budget(run.curve, budget) if run.curve else None


def _bytes_to(curve: Curve, target: float) -> float | None:
    spent = to_target(curve, target)
    return None if spent is None else spent.total


def _seconds_to(link: tuple[float, float], curve: Curve, target: float) -> float | None:
    return seconds_to_target(curve, target, *link)


def _state(planned: Sequence[Run], points: int, of: int) -> str:
    """Return what there is of an arm that has not a finished run at each point."""
    if points:
        return f"at {points} of {of} points"
    return "; ".join(dict.fromkeys(run.progress for run in planned)) or "no runs"


def _span(result: Result, point: int) -> tuple[float, float] | None:
    """Return the bytes between which runs of a point are compared: from the first round on."""
    curves = [run.curve for name in result.names for run in result.whole(name, point)]
    totals = [curve.total for curve in curves if curve and curve.total]
    if len(result.arms) < 2 or not totals:
        return None
    low, high = min(total[0] for total in totals), max(total[-1] for total in totals)
    return (float(low), float(high)) if 0 < low < high else None
