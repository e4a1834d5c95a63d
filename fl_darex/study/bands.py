"""Lines over seeds as numbers: the mean of some runs by round or bytes, lowest and highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from fl_darex.study.curves import Curve
from fl_darex.study.result import Run

MOST = 150
"""Places of a line: more cannot be seen."""


@dataclass(frozen=True)
class Band:
    """A line with what lies around it; all sequences have an entry for each place.

    Attributes:
        x: Where: rounds, or MB that were sent by then, the mean over the runs.
        mean: Over the runs.
        low: The lowest run.
        high: The highest.
        runs: How many there are.
    """

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    runs: int


Values = Callable[[Curve], Sequence[float | None]]


def by_round(runs: Sequence[Run]) -> Band | None:
    """Return the metric by round, from before round 1 where that is known of all runs."""
    curves = [run.curve for run in runs if run.curve]
    before = [curve.summary.get("initial_metric") for curve in curves]
    band = over_rounds(runs, lambda curve: curve.metrics)
    if band is None or any(value is None for value in before):
        return band
    start = [float(value) for value in before if value is not None]
    return Band(
        [0.0, *band.x],
        [mean(start), *band.mean],
        [min(start), *band.low],
        [max(start), *band.high],
        band.runs,
    )


def by_bytes(runs: Sequence[Run], way: str) -> Band | None:
    """Return the metric by the MB that were sent by then.

    Args:
        runs: Of an arm.
        way: ``"up"``, ``"down"`` or ``"total"``, which is both and the handshake.
    """
    return _band(runs, lambda c: c.metrics, lambda c: [sent / 1e6 for sent in getattr(c, way)])


def over_rounds(runs: Sequence[Run], values: Values) -> Band | None:
    """Return some value by round; None if no round has one in all runs."""
    return _band(runs, values, lambda curve: [float(number) for number in curve.rounds])


def of_rows(key: str) -> Values:
    """Return what takes a key of ``rounds.jsonl``, where there is one."""
    return lambda curve: [row.get(key) for row in curve.rows]


def _band(
    runs: Sequence[Run], values: Values, places: Callable[[Curve], Sequence[float]]
) -> Band | None:
    """Return the band over the rounds in which all runs have a finite value."""
    tables = []
    for curve in (run.curve for run in runs if run.curve):
        rows = zip(curve.rounds, places(curve), values(curve), strict=True)
        there = {number: (x, y) for number, x, y in rows if y is not None and math.isfinite(y)}
        tables.append(there)
    if not tables:
        return None
    rounds = _thinned(sorted(set(tables[0]).intersection(*tables[1:])))
    if not rounds:
        return None
    x = [mean(table[number][0] for table in tables) for number in rounds]
    y = [[table[number][1] for table in tables] for number in rounds]
    return Band(x, [*map(mean, y)], [*map(min, y)], [*map(max, y)], len(tables))


def _thinned(rounds: Sequence[int]) -> list[int]:
    """Return at most `MOST` of some rounds, the first and the last among them."""
    if len(rounds) <= MOST:
        return [*rounds]
    step = (len(rounds) - 1) / (MOST - 1)
    return [rounds[round(place * step)] for place in range(MOST)]
