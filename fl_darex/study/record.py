"""``study.json``: what a study is, which runs it has, and what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_darex.config import RunConfig, load_config
from fl_darex.errors import ConfigError
from fl_darex.files.atomic import write_text_atomically
from fl_darex.files.lines import strict_json
from fl_darex.observers import files
from fl_darex.observers.code import code_digest
from fl_darex.observers.summary import versions
from fl_darex.study.plan import Planned
from fl_darex.study.study_file import Arm, Settings, Study
from fl_darex.study.tuning import Choice

STUDY = "study.json"
FORMAT = 1


def write_record(
    out: Path,
    study: Study,
    command: str,
    planned: Sequence[Planned],
    choices: Sequence[Choice],
    remarks: Sequence[str],
    reasons: Mapping[str, str],
) -> None:
    """Write what is known of a study now.

    Args:
        out: Its folder.
        study: What it is.
        command: That runs it.
        planned: Its trials, and its runs as far as they are known.
        choices: What was chosen.
        remarks: What a person should know.
        reasons: Why runs without a folder failed, by folder.
    """
    ordinary = [one for one in planned if one.tried is None]
    record = {
        "format": FORMAT,
        "title": study.title,
        "command": command,
        "metric_name": _metric_name(out, planned),
        "reference": study.reference or None,
        "target": study.target if study.reference else None,
        "budgets": study.budgets,
        "links": study.links,
        "seeds": study.seeds,
        "grid": study.grid,
        "arms": [_arm(study, arm, choices) for arm in study.arms],
        "runs": [_run(out, one, reasons) for one in ordinary] + _not_yet(study, ordinary),
        "tuning": [_trial(out, one, choices) for one in planned if one.tried is not None],
        "remarks": remarks,
        "identities": {one.folder: one.identity for one in planned},
        "versions": versions(),
    }
    write_text_atomically(out / STUDY, strict_json(record, indent=1) + "\n")


def _arm(study: Study, arm: Arm, choices: Sequence[Choice]) -> dict[str, Any]:
    chosen = [_chosen(choices, arm.name, place) for place in range(len(study.grid))]
    return {"name": arm.name, "settings": arm.settings, "chosen": chosen}


def _run(out: Path, one: Planned, reasons: Mapping[str, str]) -> dict[str, Any]:
    where = {"arm": one.arm, "point": one.point, "seed": one.seed, "folder": one.folder}
    return where | status(out, one, reasons)


def _trial(out: Path, one: Planned, choices: Sequence[Choice]) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "point": one.point,
        "settings": one.tried,
        "metric": files.read_summary(out / one.folder).get("final_metric"),
        "chosen": any(choice.trial == one.folder for choice in choices),
        "folder": one.folder,
    }


def status(out: Path, one: Planned, reasons: Mapping[str, str] = {}) -> dict[str, str | None]:
    """Return what became of a run, and why if that is not as it should be."""
    if one.folder in reasons:
        return {"status": "failed", "reason": reasons[one.folder]}
    summary = files.read_summary(out / one.folder)
    return {"status": summary.get("status", "missing"), "reason": summary.get("reason")}


def is_done(out: Path, one: Planned) -> bool:
    """Return whether a run has finished."""
    return status(out, one)["status"] == "finished"


def refuse_others(out: Path, planned: Iterable[Planned], any_code: bool) -> None:
    """Refuse results that other settings or other code made under the names of planned runs.

    Args:
        out: The study's folder.
        planned: Its runs.
        any_code: Whether results of other code are welcome.

    Raises:
        ConfigError: If there is one.
    """
    known: Mapping[str, str] = {}
    if (out / STUDY).exists():
        known = json.loads((out / STUDY).read_text("utf-8")).get("identities", {})
    older: list[str] = []
    for one in planned:
        folder = out / one.folder
        if not (folder / files.CONFIG).exists():
            continue
        before = load_config(folder / files.CONFIG)
        if known.get(one.folder, _identity(one, before)) != one.identity:
            raise ConfigError(
                f"{str(folder)!r} holds a run with other settings "
                f"({_differs(before, one.config)}); remove it to run it anew, or name another "
                "folder with --out"
            )
        summary = files.read_summary(folder)  # there is none where a run was stopped as it began
        if summary and summary.get("versions", {}).get("code") != code_digest():
            older.append(str(folder))
    if older and not any_code:
        raise ConfigError(
            f"{len(older)} runs are of other code, such as {older[0]!r}; remove them to run them "
            "anew, name another folder with --out, or take them as they are with --any-code"
        )


def _identity(one: Planned, config: RunConfig) -> str:
    return Planned(
        arm=one.arm, point=one.point, seed=one.seed, config=config, folder=one.folder
    ).identity


def _differs(before: RunConfig, now: RunConfig) -> str:
    old, new = before.flat(), now.flat()
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    return f"{keys[0]} was {old.get(keys[0])!r}, is {new.get(keys[0])!r}" if keys else "a budget"


def _metric_name(out: Path, planned: Sequence[Planned]) -> str | None:
    names = (files.read_summary(out / one.folder).get("metric_name") for one in planned)
    return next((name for name in names if name), None)


def _chosen(choices: Sequence[Choice], arm: str, place: int) -> Settings:
    return next((c.settings for c in choices if (c.arm, c.point) == (arm, place)), {})


def _not_yet(study: Study, planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Return the runs of arms whose settings are still to be chosen, or of which no trial came."""
    there = {(one.arm, one.point, one.seed) for one in planned}
    wanted = (
        (arm.name, place, seed)
        for seed in study.seeds
        for place in range(len(study.grid))
        for arm in study.arms
    )
    return [
        {
            "arm": arm,
            "point": place,
            "seed": seed,
            "folder": None,
            "status": "missing",
            "reason": "its settings are not chosen yet",
        }
        for arm, place, seed in wanted
        if (arm, place, seed) not in there
    ]
