"""Fig. 10 of "DARE the Extreme": three bounds on the output's change, over p.

Each is ``constant(p) / (1-p) * sqrt(S2 log(2/gamma))`` for ``q = 1-p``; the figure shows the
factor before the root.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fl_darex.analysis.bounds import HOEFFDING, berend_kontorovich, kearns_saul

Curve = NDArray[np.float64]

# The last is no bound on both sides, so the figure must not look as if it were the best of three.
_LABELS = {
    "hoeffding": ("Hoeffding", "-"),
    "kearns_saul": ("Kearns-Saul: the smallest that holds on both sides", "-"),
    "berend_kontorovich": ("Berend-Kontorovich (printed for p > 1/2): one side only", "--"),
}


def bounds_over_p(p: Curve | None = None) -> dict[str, Curve]:
    """Return ``p`` and the three factors ``constant(p) / (1-p)``, by name.

    Args:
        p: Fractions dropped, in [0, 1), shape ``(points,)``; None: .005, .01, ..., .995.
    """
    at = np.arange(1, 200) / 200 if p is None else p
    constants = {
        "hoeffding": np.full(at.shape, HOEFFDING),
        "kearns_saul": np.array([kearns_saul(float(value)) for value in at]),
        "berend_kontorovich": np.array([berend_kontorovich(float(value)) for value in at]),
    }
    return {"p": at, **{name: constant / (1.0 - at) for name, constant in constants.items()}}


def plot_bounds(folder: Path) -> list[Path]:
    """Write ``bounds-over-p.csv`` and ``bounds-over-p.png`` into a folder; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = bounds_over_p()
    table, picture = folder / "bounds-over-p.csv", folder / "bounds-over-p.png"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(curves)
        writer.writerows(zip(*(curve.tolist() for curve in curves.values()), strict=True))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, (label, style) in _LABELS.items():
        axes.plot(curves["p"], curves[name], style, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("p, the fraction dropped")
    axes.set_ylabel("bound on |h| / sqrt(S2 log(2/gamma))")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=150)
    return [table, picture]
