"""A mean over seeds, or over grid points and seeds, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from fl_darex.study.intervals import bootstrap, interval


class Estimate(NamedTuple):
    """A mean and where it lies with 95 %.

    Attributes:
        mean: The mean; NaN if a value of it is none.
        half: Half of the interval's width, by Student's t over seeds; None where that is not known.
        ends: The interval's ends by a bootstrap over points and seeds; None likewise.
    """

    mean: float
    half: float | None = None
    ends: tuple[float, float] | None = None


class Reached(NamedTuple):
    """What it took to come to the target.

    Attributes:
        mean: Over the runs that reached it; None: none did.
        reached: How many did.
        runs: How many have a target.
    """

    mean: float | None
    reached: int
    runs: int

    @property
    def all(self) -> bool:
        """Whether every run reached it."""
        return 0 < self.reached == self.runs


def estimate(table: Sequence[Sequence[float]]) -> Estimate | None:
    """Return the mean of values by point and seed; None if there are none.

    With one point the interval is Student's over the seeds, with several a two-level bootstrap of
    the mean over points of the means over seeds. A single value has no interval.
    """
    points = [values for values in table if values]
    if not points:
        return None
    if not all(math.isfinite(value) for values in points for value in values):
        return Estimate(math.nan)
    if len(table) == 1:
        return Estimate(*interval(points[0]))
    ends = bootstrap(points) if sum(map(len, points)) > 1 else None
    return Estimate(mean(mean(values) for values in points), ends=ends)


def reached(values: Sequence[float | None]) -> Reached | None:
    """Return the mean of what it took; ``values`` has None for each run that did not get there."""
    if not values:
        return None
    there = [value for value in values if value is not None]
    return Reached(mean(there) if there else None, len(there), len(values))
