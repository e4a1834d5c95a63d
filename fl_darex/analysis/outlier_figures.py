"""Plots of massive activations and of what deltas add, layer by layer (Figs. 8 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fl_darex.analysis.outliers import NormPeaks, OutputSizes, Peaks, Sizes


def plot_peaks(peaks: Mapping[str, NormPeaks], path: Path, dimensions: int = 3) -> Path:
    """Draw the largest dimensions before and after each layer norm, against the median.

    Args:
        peaks: What ``norm_peaks`` found, at least one norm.
        path: The file to write; its suffix tells the format.
        dimensions: How many to show: those that are largest before some norm.

    Returns:
        ``path``.
    """
    norms = list(peaks.values())
    largest = np.max([np.abs(norm.before.value) for norm in norms], axis=0)
    shown = np.argsort(-largest, kind="stable")[:dimensions].tolist()
    # A Figure of its own: pyplot would keep state and may want a display.
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_peaks(left, "before the norm", [norm.before for norm in norms], shown)
    _draw_peaks(right, "after the norm", [norm.after for norm in norms], shown)
    left.set_ylabel("largest magnitude")
    figure.savefig(path, dpi=150)
    return path


def plot_output_sizes(sizes: Mapping[str, OutputSizes], path: Path) -> Path:
    """Draw median and 1st to 99th percentile of ``|delta_W x|`` and ``|W x|`` by layer.

    Args:
        sizes: What ``output_sizes`` found, at least one layer.
        path: The file to write; its suffix tells the format.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    _draw_sizes(axes, "|W x|", [layer.tuned for layer in sizes.values()])
    _draw_sizes(axes, "|delta W x|", [layer.delta for layer in sizes.values()])
    _finish(axes, "linear layer, in the model's order")
    axes.set_ylabel("magnitude")
    figure.savefig(path, dpi=150)
    return path


def _draw_peaks(axes: Axes, title: str, states: Sequence[Peaks], shown: Sequence[int]) -> None:
    for dimension in shown:
        values = [abs(peaks[dimension].value) for peaks in states]
        axes.plot(values, marker="o", markersize=4, label=f"dimension {dimension}")
    medians = [float(np.median(peaks.median)) for peaks in states]
    axes.plot(medians, color="grey", linestyle="--", label="median")
    axes.set_title(title)
    _finish(axes, "layer norm, in the model's order")


def _draw_sizes(axes: Axes, label: str, sizes: Sequence[Sizes]) -> None:
    low, middle, high = ([size.quantile(q) for size in sizes] for q in (0.01, 0.5, 0.99))
    (line,) = axes.plot(middle, marker="o", markersize=4, label=label)
    axes.fill_between(range(len(sizes)), low, high, color=line.get_color(), alpha=0.2)


def _finish(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.legend()
