"""Intervals over seeds: of a mean, of paired differences, and by a bootstrap.

Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS
2021, https://arxiv.org/abs/2108.13264, say why a table without them is no result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and where it lies with 95 %.

    Attributes:
        mean: The mean.
        half: Half of the interval's width; None with a single value, of which nothing is known.
    """

    mean: float
    half: float | None


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of some values, one a seed, and its 95 % interval by Student's t.

    Given the differences of two arms with the same seeds, it is the paired interval.

    Raises:
        ValueError: If there are none.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    if len(values) == 1:
        return Interval(float(values[0]), None)
    t = float(stdtrit(len(values) - 1, 0.975))
    return Interval(mean(values), t * stdev(values) / math.sqrt(len(values)))


def bootstrap(table: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean over tasks of the mean over seeds.

    Tasks and, in each, seeds are drawn with replacement, 10,000 times (a two-level percentile
    bootstrap). With one task only seeds vary; with one value everywhere both ends are equal.

    Args:
        table: Values by task and seed, such as paired differences; tasks may differ in length.
        seed: Of the draws: the same table gives the same interval.

    Raises:
        ValueError: If there is no task, or one without a value.
    """
    if not table or not all(table):
        raise ValueError("a bootstrap needs at least one value in each task")
    draws = np.random.default_rng(seed)
    means = np.stack(
        [
            np.asarray(row)[draws.integers(len(row), size=(len(table), _RESAMPLES, len(row)))].mean(
                axis=2
            )
            for row in table
        ]
    )  # task, place among the drawn tasks, resample
    chosen = draws.integers(len(table), size=(_RESAMPLES, len(table)))
    places = np.arange(len(table))
    resampled = means[chosen, places, np.arange(_RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
