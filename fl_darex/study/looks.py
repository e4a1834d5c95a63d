"""How arms look in figures: the same everywhere, told apart without colour, too.

The two palettes, on light and on dark ground, were searched for: against the ground every colour
has a contrast of 3:1 or more (WCAG 2.1, 1.4.11), and any two stay apart for eyes without one of the
three kinds of cones (Machado et al., "A Physiologically-based Model for Simulation of Color Vision
Deficiency", 2009). Markers and dashes differ besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from fl_darex.study.measures import pareto
from fl_darex.study.result import Result

INK, FAINT = "#1a1d21", "#767b82"
LIGHT = ("#4383f3", "#73120a", "#315b45", "#c56bb7", "#927836", "#6c45fe")
DARK = ("#2cd8f9", "#99725b", "#5bb492", "#f18fcf", "#e7a50d", "#b386ec")
"""Colours of arms beside the reference, whose colour is that of text."""

MOST = 8
"""Arms with a look of their own: of more, nobody could tell which is which."""

_MARKERS = ("s", "^", "D", "v", "P", "X", "p")
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.2), (4, 1.2, 1, 1.2), (1.2, 1.2))


class Look(NamedTuple):
    """How an arm is drawn.

    Attributes:
        color: One of `LIGHT`, `INK` or `FAINT`.
        marker: As matplotlib calls it; empty: none.
        dashes: Lengths of strokes and gaps, in widths of the line; empty: solid.
        own: Whether it is the arm's alone.
    """

    color: str
    marker: str
    dashes: Sequence[float]
    own: bool = True

    @property
    def line(self) -> Mapping[str, Any]:
        """What matplotlib's ``plot`` takes for it."""
        style: Any = (0, tuple(self.dashes)) if self.dashes else "-"
        return {"color": self.color, "marker": self.marker or None, "linestyle": style}


REFERENCE = Look(INK, "o", (4, 1.5))
OTHER = Look(FAINT, "", (), own=False)


def looks(result: Result) -> dict[str, Look]:
    """Return the look of each arm, in the order of the arms.

    Where there are more than `MOST`, the reference and arms of the front have one of their own.
    """
    names = result.names if len(result.arms) <= MOST else _chosen(result)
    others = [name for name in names if name != result.reference]
    found = {
        name: Look(
            LIGHT[place % len(LIGHT)],
            _MARKERS[place % len(_MARKERS)],
            _DASHES[place % len(_DASHES)],
        )
        for place, name in enumerate(others)
    }
    if result.reference is not None:
        found[result.reference] = REFERENCE
    return {name: found.get(name, OTHER) for name in result.names}


def _chosen(result: Result) -> list[str]:
    """Return arms that no other beats in both bytes and metric, in the order of the arms."""
    points, names = [], []
    for name in result.names:
        if not all(result.whole(name, point) for point in result.points):
            continue  # its mean would be over other points than theirs
        runs = [run for point in result.points for run in result.whole(name, point)]
        finals = [run.final for run in runs if run.final is not None and math.isfinite(run.final)]
        if finals and name != result.reference:
            names.append(name)
            points.append((mean(run.sent[2] for run in runs), mean(finals)))
    front = pareto(points)
    if len(front) >= MOST:  # spread over it, from the fewest bytes to the best metric
        step = (len(front) - 1) / (MOST - 2)
        front = [front[round(place * step)] for place in range(MOST - 1)]
    shown = {names[place] for place in front}
    return [name for name in result.names if name in shown]
