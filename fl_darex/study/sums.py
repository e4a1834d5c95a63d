"""Where bytes go: by kind of exchange, and by layer."""

from __future__ import annotations

from collections import Counter
from statistics import mean

from fl_darex.study.result import Result

MOST_LAYERS = 20


def bytes_by_kind(result: Result, point: int) -> dict[str, dict[str, float]]:
    """Return the bytes of a run, both ways, by arm and kind: means over seeds."""
    found = {}
    for name in result.names:
        runs = result.shown(name, point)
        kinds = dict.fromkeys(kind for run in runs for kind in run.kinds)
        found[name] = {kind: mean(run.kinds.get(kind, 0) for run in runs) for kind in kinds}
    return found


def bytes_by_layer(result: Result, point: int) -> dict[str, dict[str, float]]:
    """Return the bytes of a run by layer and arm, of the `MOST_LAYERS` with the most.

    Empty where no ``summary.json`` has a list ``layers`` of ``name``, ``entries`` and ``bytes``.
    """
    found: dict[str, dict[str, float]] = {}
    for name in result.names:
        sums: Counter[str] = Counter()
        runs = (r.curve.summary.get("layers") for r in result.shown(name, point) if r.curve)
        told = [layers for layers in runs if layers]
        for layer in (layer for layers in told for layer in layers):
            sums[str(layer["name"])] += layer["bytes"]
        for layer, total in sums.items():
            found.setdefault(layer, {})[name] = total / len(told)
    largest = sorted(found, key=lambda layer: -max(found[layer].values()))[:MOST_LAYERS]
    return {layer: found[layer] for layer in largest}
