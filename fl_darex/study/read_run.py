"""A run folder as a run of a study."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_darex.config import read_file
from fl_darex.errors import ConfigError
from fl_darex.observers.files import CLIENTS, CONFIG, ROUNDS, SUMMARY
from fl_darex.study.curves import Curve, read_curve
from fl_darex.study.result import Run


def read_run(arm: str, point: int, seed: int | None, folder: Path) -> Run:
    """Return the run in a folder, as far as it is.

    Args:
        arm: Name of its arm.
        point: Its place in the grid.
        seed: Its seed; None: what its configuration says.
        folder: The run folder.

    Raises:
        ConfigError: If it is no run folder, or a file of it cannot be read.
    """
    config = read_file(folder / CONFIG)
    try:
        curve = read_curve(folder)
        _check(curve)
        kinds = _kinds(folder / CLIENTS)
        said = config.get("federation.seed", 0) if seed is None else seed
        return Run(
            arm=arm,
            point=point,
            seed=int(said),
            folder=folder,
            status=str(curve.summary.get("status", "unreadable")),
            reason=str(curve.summary.get("reason") or ""),
            curve=curve,
            config=config,
            kinds=kinds,
        )
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        why = f"{type(error).__name__}: {error}"
    raise ConfigError(
        f"the run in {str(folder)!r} cannot be read ({why}); remove the folder, or name others"
    ) from None


def _check(curve: Curve) -> None:
    """Refuse what JSON allows and no run writes, before it gets into a sum."""
    summary = curve.summary
    numbers = [("initial_metric", summary.get("initial_metric"))]
    numbers += [("final_metric", summary.get("final_metric"))]
    numbers += [("metric", metric) for metric in curve.metrics]
    numbers += [(key, row.get(key)) for row in curve.rows for key in ("q", "p", "rho")]
    for key, value in numbers:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{key} is {value!r}; allowed: a number or null")
    layers = summary.get("layers")
    if layers is not None and not isinstance(layers, list):
        raise TypeError(f"layers is {layers!r:.60}; allowed: a list, or null")
    bytes_sent = [("bytes of layers", layer["bytes"]) for layer in layers or [] if layer["name"]]
    bytes_sent += [("dense_total_bytes", summary.get("dense_total_bytes", 0))]
    bytes_sent += [("handshake_bytes", curve.handshake)]
    bytes_sent += [(k, row[k]) for row in curve.rows for k in ("up_bytes", "down_bytes")]
    for key, value in [*bytes_sent, *(("round", number) for number in curve.rounds)]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _counts(value):
            raise TypeError(
                f"{key} is {value!r}; allowed: a number from 0 on in {ROUNDS}, {SUMMARY}"
            )


def _counts(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _kinds(path: Path) -> Mapping[str, int]:
    """Return the bytes of each kind of exchange, both ways."""
    found: Counter[str] = Counter()
    text = path.read_text("utf-8")
    for line in text[: text.rfind("\n") + 1].splitlines():
        entry: dict[str, Any] = json.loads(line)
        found[str(entry.get("kind", "other"))] += entry["up_bytes"] + entry["down_bytes"]
    return found
