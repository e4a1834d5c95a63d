"""The plots of one run, as a paper's column takes them: the metric by round, and by bytes.

Each is written as PNG to look at, and as PDF and SVG to publish.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

FORMATS = ("png", "pdf", "svg")
COLUMN = (3.4, 2.5)
"""Inches: one column of a page with two, so that letters keep their size where it is included."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: what publishers accept, and can be searched
    "svg.hashsalt": "fl-darex",  # the same run gives the same file
}
_SAME = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


@dataclass(frozen=True)
class _Curve:
    rounds: list[int]
    metrics: list[float]
    up: list[float]  # MB until then, as all others
    total: list[float]
    dense: list[float]


def plot_run(folder: Path) -> list[Path]:
    """Draw ``plots/metric-by-round`` and ``plots/metric-by-megabytes``, each in `FORMATS`.

    Bytes are on a logarithmic axis: those of all clients' uploads, up and down together, and, as a
    reference, what the same rounds cost where the whole model is sent both ways.

    Args:
        folder: A run folder.

    Returns:
        The files written; empty if no round was evaluated.
    """
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text("utf-8").splitlines()]
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    curve = _read(rows)
    if not curve.rounds:
        return []
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    name, before = summary["metric_name"], summary["initial_metric"]
    with rc_context(STYLE):
        by_round, axes = _axes("round", name)
        start = [] if before is None else [(0, before)]
        rounds, metrics = zip(*start, *zip(curve.rounds, curve.metrics, strict=True), strict=True)
        axes.plot(rounds, metrics, marker="o", color="black")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        by_bytes, axes = _axes("MB sent so far, all clients", name)
        _by_bytes(axes, curve)
        by_bytes.legend(loc="outside upper center", ncols=3, frameon=False)
        files = save_figure(by_round, target / "metric-by-round")
        return files + save_figure(by_bytes, target / "metric-by-megabytes")


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in some formats; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: Where to, without a suffix.
        formats: Some of `FORMATS`.
    """
    files = [path.with_name(f"{path.name}.{kind}") for kind in formats]
    # The layout moves ticks, which have longer labels then: a second one finds room for these.
    figure.draw_without_rendering()
    for file, kind in zip(files, formats, strict=True):
        figure.savefig(file, dpi=300, metadata=_SAME[kind])
    return files


def _read(rows: list[dict[str, Any]]) -> _Curve:
    sums = [
        list(accumulate(sum(row[key] for key in keys) / 1e6 for row in rows))
        for keys in (
            ("up_bytes",),
            ("up_bytes", "down_bytes"),
            ("dense_up_bytes", "dense_down_bytes"),
        )
    ]
    points = [
        (row["round"], row["metric"], *sent)
        for row, *sent in zip(rows, *sums, strict=True)
        if row["metric"] is not None
    ]
    return _Curve(*(list(column) for column in zip(*points, strict=True))) if points else _NOTHING


_NOTHING = _Curve([], [], [], [], [])


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # A Figure of its own: pyplot would keep state and may want a display.
    figure = Figure(figsize=COLUMN, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3, linewidth=0.5)
    return figure, axes


def _by_bytes(axes: Axes, curve: _Curve) -> None:
    # Told apart in grey, too: by marker and line.
    axes.plot(curve.up, curve.metrics, marker="o", color="tab:blue", label="up")
    axes.plot(curve.total, curve.metrics, marker="s", color="black", label="up + down")
    axes.plot(
        curve.dense,
        curve.metrics,
        linestyle="--",
        color="grey",
        label="the same rounds, dense",
    )
    log_axis(axes, curve.up[0], curve.dense[-1])


def log_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Make the x axis logarithmic, with plain numbers at so many places as there is room for."""
    axes.set_xscale("log")
    decades = math.log10(highest / lowest) if lowest > 0 else math.inf
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
