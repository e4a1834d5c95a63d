"""What a run is worth: bytes and time to a target, the metric that bytes buy, the area below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fl_darex.study.curves import Curve, first_at


class Spent(NamedTuple):
    """What it took a run to come to a target.

    Attributes:
        round: The first round after which the metric was there.
        up: Bytes until then, from clients to the server.
        down: Bytes from the server to clients.
        total: Both, and the handshake.
    """

    round: int
    up: int
    down: int
    total: int


def to_target(curve: Curve, target: float) -> Spent | None:
    """Return what it took to reach a metric for the first time; None: it was not reached."""
    place = first_at(curve, lambda metric: metric >= target)
    if place is None:
        return None
    return Spent(curve.rounds[place], curve.up[place], curve.down[place], curve.total[place])


def seconds_to_target(curve: Curve, target: float, up: float, down: float) -> float | None:
    """Return the time on the wire to reach a metric, without that of training; None: it was not.

    Args:
        curve: The run.
        target: The metric.
        up: Rate of each client's link to the server, in Mbit/s.
        down: Rate from the server, likewise.
    """
    place = first_at(curve, lambda metric: metric >= target)
    return None if place is None else curve.seconds(up, down)[place]


def at_budget(curve: Curve, budget: float) -> float | None:
    """Return the last metric that was there before more bytes than these were sent, both ways.

    It is the initial metric where not even one measured round fits, and None where that is not
    known.
    """
    found = curve.summary.get("initial_metric")
    for metric, total in zip(curve.metrics, curve.total, strict=True):
        if total > budget:
            break
        found = found if metric is None else metric
    return None if found is None else float(found)


def area(curve: Curve, lowest: float, highest: float) -> float | None:
    """Return the mean of the metric over the logarithm of the bytes sent, both ways.

    The metric between two measurements is the earlier one. 1 is the best that an accuracy can have;
    limits are the same for all runs that are compared.

    Args:
        curve: The run; one that ends before ``highest`` keeps its last metric.
        lowest: Bytes from which on the metric counts, above 0.
        highest: Bytes up to which, above ``lowest``.

    Returns:
        The mean, or None if nothing was measured.
    """
    steps = [
        (float(total), metric)
        for total, metric in zip(curve.total, curve.metrics, strict=True)
        if metric is not None
    ]
    before = curve.summary.get("initial_metric")
    if not steps or not math.isfinite(steps[-1][1]):
        return None
    value = float(before) if before is not None else 0.0
    at, whole = lowest, 0.0
    for total, metric in steps:
        end = min(max(total, lowest), highest)
        whole += value * math.log(end / at)
        at, value = end, metric
    return (whole + value * math.log(highest / at)) / math.log(highest / lowest)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of some (bytes, metric) no other beats in both: fewer bytes, better metric.

    Args:
        points: In any order; equal ones are all returned.

    Returns:
        Their places, by rising bytes.
    """
    best = -math.inf
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda one: (points[one][0], -points[one][1])):
        metric = points[place][1]
        if metric > best or (found and points[found[-1]] == points[place]):
            found.append(place)
            best = max(best, metric)
    return found
