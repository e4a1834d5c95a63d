"""What trials say: the settings that each arm is run with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_darex.observers import files
from fl_darex.study.plan import Planned
from fl_darex.study.study_file import Settings


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for an arm at a point of the grid.

    Attributes:
        arm: Its name.
        point: Place in the grid.
        settings: What is set.
        trial: Folder of the trial that was best.
    """

    arm: str
    point: int
    settings: Settings
    trial: str


def choose(out: Path, trials: Sequence[Planned]) -> list[Choice]:
    """Return the best trial of each arm at each point: the highest final metric, then fewer bytes.

    An arm of which a trial is still to come, or none has a metric, has no choice.

    Args:
        out: The study's folder.
        trials: All of it.
    """
    groups: dict[tuple[str, int], list[Planned]] = {}
    for one in trials:
        groups.setdefault((one.arm, one.point), []).append(one)
    found = []
    for (arm, point), some in groups.items():
        best = _best(out, some)
        if best is not None and best.tried is not None:
            choice = Choice(arm=arm, point=point, settings=best.tried, trial=best.folder)
            found.append(choice)
    return found


def _best(out: Path, trials: Iterable[Planned]) -> Planned | None:
    scored: list[tuple[float, int, int, Planned]] = []
    for place, one in enumerate(trials):
        summary = files.read_summary(out / one.folder)
        if summary.get("status") not in ("finished", "failed"):
            return None
        metric = summary.get("final_metric")
        if summary["status"] == "finished" and metric is not None and math.isfinite(metric):
            # Of equals, the one that sends less, then the one that was named first.
            scored.append((float(metric), -int(summary["total_bytes"]), -place, one))
    return max(scored, key=lambda row: row[:3])[3] if scored else None
