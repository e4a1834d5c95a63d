"""The plots of one run: the metric by round, and by what crossed the network."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_run(folder: Path) -> list[Path]:
    """Draw ``plots/metric-by-round.png`` and ``plots/metric-by-megabytes.png``.

    Args:
        folder: A run folder with at least one evaluated round.

    Returns:
        The files written; empty if no round was evaluated.
    """
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    sent = accumulate((row["up_bytes"] + row["down_bytes"]) / 1e6 for row in rows)
    points = [
        (row["round"], total, row["metric"])
        for row, total in zip(rows, sent, strict=True)
        if row["metric"] is not None
    ]
    if not points:
        return []
    if summary["initial_metric"] is not None:
        points.insert(0, (0, 0.0, summary["initial_metric"]))
    rounds, megabytes, metrics = zip(*points, strict=True)
    name = summary["metric_name"]
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    sent_by = "MB sent, up and down, all clients"
    return [
        _line(target / "metric-by-round.png", rounds, metrics, "round", name),
        _line(target / "metric-by-megabytes.png", megabytes, metrics, sent_by, name),
    ]


def _line(path: Path, x: Any, y: Any, x_label: str, y_label: str) -> Path:
    # A Figure of its own: pyplot would keep state and may want a display.
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, y, marker="o", markersize=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return path
