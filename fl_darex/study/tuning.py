"""What trials say: the settings that each arm is run with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_darex.observers import files
from fl_darex.study.curves import read_curve
from fl_darex.study.measures import to_target
from fl_darex.study.plan import Planned
from fl_darex.study.study_file import Settings, Study


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


def choose(out: Path, study: Study, trials: Sequence[Planned]) -> list[Choice]:
    """Return the best trial of each arm at each point of the grid.

    That is the one with the highest final metric or, with ``tune.target`` and but for the
    reference, of those that reach the target the one with the fewest bytes until then, both ways;
    of equals the one that sends less in all, then the first. An arm of which a trial is still to
    come, or none has a metric, has no choice.

    Args:
        out: The study's folder.
        study: The study.
        trials: All of it.
    """
    groups: dict[tuple[str, int], list[Planned]] = {}
    for one in trials:
        groups.setdefault((one.arm, one.point), []).append(one)
    part = study.tuning.target if study.tuning else None
    found = []
    for (arm, point), some in groups.items():
        goal = None
        if part and arm != study.reference:  # which is chosen by what it reaches
            highest = _highest(out, groups.get((study.reference, point), []))
            goal = highest and highest * part
        best = _best(out, some, goal)
        if best is not None and best.tried is not None:
            choice = Choice(arm=arm, point=point, settings=best.tried, trial=best.folder)
            found.append(choice)
    return found


def _highest(out: Path, trials: Iterable[Planned]) -> float | None:
    """Return the best final metric of some trials; None: there is none yet."""
    metrics = (files.read_summary(out / one.folder).get("final_metric") for one in trials)
    sound = [float(one) for one in metrics if one is not None and math.isfinite(one)]
    return max(sound, default=None)


def _best(out: Path, trials: Iterable[Planned], goal: float | None) -> Planned | None:
    scored: list[tuple[tuple[float, ...], Planned]] = []
    for place, one in enumerate(trials):
        summary = files.read_summary(out / one.folder)
        if summary.get("status") not in ("finished", "failed"):
            return None
        metric = summary.get("final_metric")
        if summary["status"] == "finished" and metric is not None and math.isfinite(metric):
            spent = to_target(read_curve(out / one.folder), goal) if goal else None
            first = (1.0, -float(spent.total)) if spent else (0.0, float(metric))
            scored.append(((*first, -float(summary["total_bytes"]), -float(place)), one))
    return max(scored, key=lambda row: row[0])[1] if scored else None
