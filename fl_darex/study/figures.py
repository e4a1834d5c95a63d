"""Figures of a result, each as a matplotlib figure: for a notebook, a paper, and the report's page.

    >>> result = load_result("runs/my-study")
    >>> metric_by_bytes(result).savefig("figure.pdf")

Lines are means over seeds, bands reach from the lowest to the highest seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from fl_darex.study.bands import Band, by_bytes, by_round, of_rows
from fl_darex.study.bands import over_rounds as band_over_rounds
from fl_darex.study.canvas import STYLE, StudyFigure, add_legend, canvas, name_rows, readable
from fl_darex.study.headline import headline
from fl_darex.study.looks import FAINT, LIGHT, Look, looks
from fl_darex.study.plots import log_axis
from fl_darex.study.read_folders import load_result as load_result
from fl_darex.study.result import Result, Run
from fl_darex.study.sums import bytes_by_kind as kinds_of
from fl_darex.study.sums import bytes_by_layer as layers_of

WAYS = {
    "total": "MB sent so far, up and down",
    "up": "MB sent up so far",
    "down": "MB sent down so far",
}
"""Ways to count bytes: all clients together; only the total has the handshake."""

ROW_KEYS = {
    "q": "q: survivors are divided by it",
    "p": "p: fraction dropped",
    "rho": "rho: how much clients agree",
}
"""What may be drawn over rounds, beside the metric."""


def metric_by_round(result: Result, point: int = 0, *, legend: bool = True) -> StudyFigure:
    """Return the metric after each round, from before round 1 where that was measured.

    Args:
        result: What was measured.
        point: The grid point, from 0.
        legend: Whether arms are named below the axes.
    """
    with rc_context(STYLE):
        figure, axes = canvas("round", result.metric_name)
        _lines(axes, result, point, by_round)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _done(figure, axes, result, legend)


def metric_by_bytes(
    result: Result, way: str = "total", point: int = 0, *, legend: bool = True
) -> StudyFigure:
    """Return the metric by the bytes that all clients sent until then, on a logarithmic axis.

    Args:
        result: What was measured.
        way: One of `WAYS`.
        point: The grid point, from 0.
        legend: Whether arms are named below the axes.
    """
    with rc_context(STYLE):
        figure, axes = canvas(WAYS[way], result.metric_name)
        drawn = _lines(axes, result, point, lambda runs: by_bytes(runs, way))
        if places := [x for band in drawn for x in band.x if x > 0]:
            log_axis(axes, min(places), max(places))
        return _done(figure, axes, result, legend)


def over_rounds(result: Result, key: str, point: int = 0, *, legend: bool = True) -> StudyFigure:
    """Return what ``rounds.jsonl`` has under a key, such as ``"q"`` or ``"rho"``, by round.

    Args:
        result: What was measured.
        key: One of `ROW_KEYS`, or any other key of a number.
        point: The grid point, from 0.
        legend: Whether arms are named below the axes.
    """
    with rc_context(STYLE):
        figure, axes = canvas("round", ROW_KEYS.get(key, key))
        _lines(axes, result, point, lambda runs: band_over_rounds(runs, of_rows(key)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _done(figure, axes, result, legend)


def pareto_front(
    result: Result, points: Sequence[int] | None = None, *, legend: bool = True
) -> StudyFigure:
    """Return each arm's final metric by the bytes of a whole run, and the front of the best.

    Args:
        result: What was measured.
        points: Grid points to take means over; None: all.
        legend: Whether arms are named below the axes.
    """
    table, styles = headline(result, points), looks(result)
    with rc_context(STYLE):
        figure, axes = canvas("MB of a whole run, up and down", f"final {result.metric_name}")
        rows = [row for row in table.rows if row.final and row.total and not row.state]
        for row in rows:
            if row.final is None or not row.total:
                continue
            mean, half, ends = row.final
            low, high = ends or (mean - (half or 0.0), mean + (half or 0.0))
            look = styles[row.arm]
            bars: Any = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]  # but for rounding
            style: Any = {"color": look.color, "marker": look.marker or ".", "markersize": 5}
            axes.errorbar(row.total / 1e6, mean, bars, ls="", capsize=2, elinewidth=0.8, **style)
        front = [
            (row.total / 1e6, row.final.mean) for row in table.front if row.total and row.final
        ]
        if front:
            axes.step(*zip(*front, strict=True), where="post", color=FAINT, lw=0.8, zorder=0)
        totals = [row.total / 1e6 for row in rows if row.total]
        if totals:
            log_axis(axes, min(totals), max(totals))
        return _done(figure, axes, result, legend, lines=False)


def bytes_by_kind(result: Result, point: int = 0, *, legend: bool = True) -> StudyFigure:
    """Return the bytes of each kind of exchange, both ways, for each arm.

    Args:
        result: What was measured.
        point: The grid point, from 0.
        legend: Whether kinds are named below the axes.
    """
    table = {arm: row for arm, row in kinds_of(result, point).items() if row}
    return _dots(table, kinds_looks(result, point), legend)


def kinds_looks(result: Result, point: int = 0) -> dict[str, Look]:
    """Return how each kind of exchange looks."""
    kinds = dict.fromkeys(kind for row in kinds_of(result, point).values() for kind in row)
    markers = "osD^vPX"
    return {
        kind: Look(LIGHT[place % len(LIGHT)], markers[place % len(markers)], ())
        for place, kind in enumerate(kinds)
    }


def bytes_by_layer(result: Result, point: int = 0, *, legend: bool = True) -> StudyFigure:
    """Return the bytes of each layer, for each arm, where runs say them.

    Args:
        result: What was measured.
        point: The grid point, from 0.
        legend: Whether arms are named below the axes.
    """
    return _dots(layers_of(result, point), looks(result), legend and len(result.arms) > 1)


def _lines(
    axes: Axes, result: Result, point: int, make: Callable[[Sequence[Run]], Band | None]
) -> list[Band]:
    """Draw a line for each arm; those without a look of their own lie below the others."""
    drawn = []
    for name, look in sorted(looks(result).items(), key=lambda one: one[1].own):
        band = make(result.shown(name, point))
        if band is None:
            continue
        drawn.append(band)
        width = 1.2 if look.own else 0.6
        each = max(1, len(band.x) // 8)
        axes.plot(band.x, band.mean, lw=width, markevery=each, **look.line)
        if band.runs > 1 and look.own:
            style: Any = {"color": look.color, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(band.x, band.low, band.high, **style)
    return drawn


def _done(
    figure: StudyFigure, axes: Axes, result: Result, legend: bool, lines: bool = True
) -> StudyFigure:
    if not axes.has_data():
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
    if legend and len(result.arms) > 1:
        add_legend(figure, looks(result), lines)
    return figure


def _dots(
    table: Mapping[str, Mapping[str, float]], styles: Mapping[str, Look], legend: bool
) -> StudyFigure:
    """Draw a row for each name and a dot for each of its parts, by bytes on a logarithmic axis."""
    with rc_context(STYLE):
        figure, axes = canvas("MB of a whole run, up and down", "", rows=len(table))
        for series, look in styles.items():
            at = [(row[series] / 1e6, y) for y, row in enumerate(table.values()) if row.get(series)]
            if at:
                marker: Any = {"marker": look.marker or ".", "markersize": 4, "color": look.color}
                axes.plot(*zip(*at, strict=True), ls="", **marker)
        name_rows(axes, [readable(name, 22) for name in table])
        values = [value / 1e6 for row in table.values() for value in row.values() if value]
        if values:
            log_axis(axes, min(values), max(values))
            if max(values) > 100 * min(values):  # names have taken the room for more numbers
                axes.xaxis.set_major_locator(LogLocator(numticks=5))
        if legend:
            add_legend(figure, styles, lines=False)
        return figure
