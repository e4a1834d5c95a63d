"""``summary.json``: what a run came to, with the same keys at every moment."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fl_darex.config import RunConfig
from fl_darex.flower.ledger import Entry
from fl_darex.observers.code import code_digest
from fl_darex.observers.observer import RoundReport, RunStart

_PACKAGES = ("fl-darex", "flwr", "torch", "transformers", "peft", "datasets", "numpy", "ray")


def summarise(
    config: RunConfig,
    start: RunStart | None,
    reports: Sequence[RoundReport],
    handshake: Sequence[Entry],
) -> dict[str, Any]:
    """Return the totals of a run; ratios are dense bytes over bytes sent, None before round 1.

    In ``dense_...`` every client is sent the whole model in every round. Without ``held_bytes`` it
    is not sent the model before round 1 where it holds that, as a client of fl-darex does.

    Args:
        config: The run's configuration.
        start: What was known before round 1; None: the run is not there yet.
        reports: All rounds so far.
        handshake: All exchanges that belong to no round.
    """
    metrics = [report.metric for report in reports if report.metric is not None]
    extra = sum(entry.up_bytes + entry.down_bytes for entry in handshake)
    ways = ("up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes")
    up, down, dense_up, dense_down = (sum(getattr(r, way) for r in reports) for way in ways)
    held, total = sum(report.held_bytes for report in reports), up + down + extra
    return {
        "metric_name": start.metric_name if start else None,
        "initial_metric": start.initial_metric if start else None,
        "final_metric": metrics[-1] if metrics else None,
        "best_metric": max(filter(math.isfinite, metrics), default=None),
        "test_metric": reports[-1].test_metric if reports else None,
        "rounds": len(reports),
        "parameters": start.parameters if start else None,
        "up_bytes": up,
        "down_bytes": down,
        "handshake_bytes": extra,
        "total_bytes": total,
        "dense_up_bytes": dense_up,
        "dense_down_bytes": dense_down,
        "dense_total_bytes": dense_up + dense_down,
        "held_bytes": held,
        "up_ratio": dense_up / up if up else None,
        "total_ratio": (dense_up + dense_down) / total if up else None,
        "total_ratio_without_held": (dense_up + dense_down - held) / total if up else None,
        "failures": sum(report.failures for report in reports),
        "seed": config.federation.seed,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's result.

    ``code`` is a digest of the files of fl-darex themselves.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "code": code_digest()}
