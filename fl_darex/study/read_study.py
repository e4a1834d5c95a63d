"""``study.json``: the file that makes a folder a study's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_darex.errors import ConfigError
from fl_darex.study.read_run import read_run
from fl_darex.study.result import FINISHED, MISSING, UNREADABLE, Arm, Result, Run, Trial

STUDY = "study.json"

Status = Literal["finished", "failed", "missing", "running", "interrupted"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Arm(_Entry):
    name: str = Field(min_length=1)
    settings: dict[str, Any] = {}
    chosen: list[dict[str, Any]] = []


class _Placed(_Entry):
    arm: str
    point: int = Field(default=0, ge=0)


class _Run(_Placed):
    seed: int
    folder: str
    status: Status
    reason: str | None = None


class _Trial(_Placed):
    settings: dict[str, Any] = {}
    metric: float | None = None
    chosen: bool = False


class _Study(_Entry):
    format: Literal[1]
    title: str
    command: str = ""
    metric_name: str = "metric"
    reference: str | None = None
    target: Positive | None = None
    budgets: list[Positive] = []
    links: list[tuple[Positive, Positive]] = []
    seeds: list[int]
    grid: list[dict[str, Any]] = []
    arms: list[_Arm] = Field(min_length=1)
    runs: list[_Run]
    tuning: list[_Trial] = []
    remarks: list[str] = []
    versions: dict[str, Any] = {}


def read_study(folder: Path) -> Result:
    """Return the study in a folder, with every run that it planned.

    A run whose files are damaged is one that did not finish: its status is ``unreadable``.

    Raises:
        ConfigError: If ``study.json`` cannot be read, or contradicts itself.
    """
    path = folder / STUDY
    try:
        study = _Study.model_validate(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(
            f"{str(path)!r} cannot be used: {key}: {first['msg']}, got {first['input']!r:.60}; run "
            "the study again, or mend the file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is no JSON file: {error}; run the study again") from None
    _check(path, study)
    return Result(
        title=study.title,
        command=study.command,
        metric_name=study.metric_name,
        reference=study.reference,
        target=study.target,
        budgets=study.budgets,
        links=study.links,
        seeds=study.seeds,
        grid=study.grid or [{}],
        arms=[Arm(name=a.name, settings=a.settings, chosen=a.chosen) for a in study.arms],
        runs=_runs(folder, study),
        tuning=[
            Trial(arm=t.arm, point=t.point, settings=t.settings, metric=t.metric, chosen=t.chosen)
            for t in study.tuning
        ],
        remarks=study.remarks,
        versions={name: str(version) for name, version in study.versions.items()},
        folder=folder,
        study=True,
    )


def _check(path: Path, study: _Study) -> None:
    """Refuse what points nowhere."""
    names = [arm.name for arm in study.arms]
    points = max(len(study.grid), 1)
    placed: list[_Placed] = [*study.runs, *study.tuning]
    keys = [(run.arm, run.point, run.seed) for run in study.runs]
    named = {*([study.reference] if study.reference is not None else [])}
    named |= {entry.arm for entry in placed}
    problem = ""
    if twice := _repeated(names):
        problem = f"arms: {twice!r} is there twice"
    elif odd := sorted(named - {*names}):
        problem = f"there is no arm {odd[0]!r}; there are: {', '.join(names)}"
    elif beyond := [one.point for one in placed if one.point >= points]:
        problem = f"there is no point {beyond[0]}; allowed: 0 to {points - 1}"
    elif twice := _repeated(keys):
        problem = f"runs: arm {twice[0]!r}, point {twice[1]}, seed {twice[2]} is there twice"
    if problem:
        raise ConfigError(f"{str(path)!r} cannot be used: {problem}; run the study again")


def _repeated(values: Sequence[Any]) -> Any:
    return next((one for place, one in enumerate(values) if one in values[:place]), None)


def _runs(folder: Path, study: _Study) -> list[Run]:
    """Return a run for each arm, point and seed, whether the study has come to it or not."""
    entries = {(entry.arm, entry.point, entry.seed): entry for entry in study.runs}
    seeds = sorted({*study.seeds, *(entry.seed for entry in study.runs)})
    planned = [
        (arm.name, point, seed)
        for arm in study.arms
        for point in range(max(len(study.grid), 1))
        for seed in seeds
        if seed in study.seeds or (arm.name, point, seed) in entries
    ]
    return [_run(folder, key, entries.get(key)) for key in planned]


def _run(folder: Path, key: tuple[str, int, int], entry: _Run | None) -> Run:
    arm, point, seed = key
    told: dict[str, Any] = {"arm": arm, "point": point, "seed": seed}
    if entry is None:
        reason = f"{STUDY} has no such run"
        return Run(**told, folder=folder, status=MISSING, reason=reason)
    place, reason = folder / entry.folder, entry.reason or ""
    if entry.status == MISSING or not place.exists():
        gone = entry.status == FINISHED
        status, reason = (MISSING, "its folder is gone") if gone else (entry.status, reason)
        return Run(**told, folder=place, status=status, reason=reason)
    try:
        found = read_run(arm, point, seed, place)
    except ConfigError as error:
        if entry.status == "failed":  # which may be why there is nothing to read
            return Run(**told, folder=place, status=entry.status, reason=reason)
        return Run(**told, folder=place, status=UNREADABLE, reason=str(error))
    if entry.status not in ("failed", "interrupted"):
        return found  # its own summary is what was written last
    return replace(found, status=entry.status, reason=reason or found.reason)
