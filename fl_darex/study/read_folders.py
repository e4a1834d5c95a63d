"""Folders of a command line as a result: a study's folder, or run folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from fl_darex.errors import ConfigError
from fl_darex.observers.files import CONFIG
from fl_darex.study.read_run import read_run
from fl_darex.study.read_study import STUDY, read_study
from fl_darex.study.result import SEED, Arm, Result, Run

TARGET = 0.99
LINKS = ((1.0, 10.0), (10.0, 100.0))
"""What a `study.json` would say, for runs that are compared without one: of dense; Mbit/s."""


def load_result(*folders: Path | str) -> Result:
    """Return what was measured in a study's folder, or in one or several run folders.

    Runs whose settings differ in the seed alone are the seeds of one arm; others are arms, named by
    their folders. The reference is the one arm that sends everything, if there is just one.

    Raises:
        ConfigError: If a folder holds neither, a study is not alone, a file cannot be read, or
            the runs do not measure the same thing.
    """
    paths = list({Path(one).resolve(): Path(one) for one in folders}.values())
    if not paths:
        raise ConfigError("name a run folder, a study's folder, or several run folders")
    for path in paths:
        _check(path)
    if studies := [path for path in paths if (path / STUDY).is_file()]:
        if len(paths) > 1:
            raise ConfigError(
                f"{str(studies[0])!r} holds a study; name it alone, or name run folders alone"
            )
        return read_study(paths[0])
    return _compared(paths)


def _check(path: Path) -> None:
    if not path.is_dir():
        what = "a file" if path.exists() else "not there"
        raise ConfigError(f"{str(path)!r} is {what}; name run folders, or a study's folder")
    if not (path / STUDY).is_file() and not (path / CONFIG).is_file():
        raise ConfigError(
            f"{str(path)!r} is neither a run folder nor a study's folder: it has no {CONFIG} and "
            f"no {STUDY}; name the --out of fl-darex run"
        )


def _compared(paths: Sequence[Path]) -> Result:
    names = _names(paths)
    runs = [read_run(name, 0, None, path) for name, path in zip(names, paths, strict=True)]
    metrics = {str(name): run.arm for run in runs if (name := _metric(run)) is not None}
    if len(metrics) > 1:
        shown = ", ".join(f"{name} in {arm!r}" for name, arm in metrics.items())
        raise ConfigError(f"the runs measure different things: {shown}; report them apart")
    runs = _in_arms(runs)
    arms = list(dict.fromkeys(run.arm for run in runs))
    dense = sorted({r.arm for r in runs if r.config.get("compress.method") == "dense"})
    alone = len(arms) == 1
    return Result(
        title=f"Run {arms[0]}" if len(runs) == 1 else f"{len(runs)} runs: {_few(arms)}",
        metric_name=next(iter(metrics), "metric"),
        reference=dense[0] if len(dense) == 1 and not alone else None,
        target=TARGET if len(dense) == 1 and not alone else None,
        links=LINKS,
        seeds=sorted({run.seed for run in runs}),
        arms=[Arm(name=name) for name in arms],
        runs=runs,
        versions=dict(runs[0].curve.summary.get("versions") or {}) if runs[0].curve else {},
        folder=paths[0],
        remarks=_remarks(runs),
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")


def _metric(run: Run) -> str | None:
    return run.curve.summary.get("metric_name") if run.curve else None


def _remarks(runs: Sequence[Run]) -> list[str]:
    found = [run.curve.summary.get("versions") or {} for run in runs if run.curve]
    packages = sorted({name for one in found for name in one})
    odd = [name for name in packages if len({one.get(name) for one in found}) > 1]
    return [f"the runs were not made with the same versions of: {', '.join(odd)}"] if odd else []


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what the paths' last parts differ in, as many of them as it takes."""
    parts = [path.resolve().parts for path in paths]
    for many in range(1, max(map(len, parts)) + 1):
        ends = [one[-many:] for one in parts]
        if len({*ends}) < len(ends):
            continue
        same = [
            place
            for place in range(many)
            if len(ends) > 1 and len({end[place] for end in ends if len(end) == many}) == 1
        ]
        return ["/".join(p for place, p in enumerate(end) if place not in same) for end in ends]
    return [str(path) for path in paths]


def _in_arms(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with those in one arm that differ in the seed alone."""
    arms: list[dict[int, Run]] = []
    settings: list[dict[str, object]] = []
    for run in runs:
        mine = {key: value for key, value in run.config.items() if key != SEED}
        for arm, theirs in zip(arms, settings, strict=True):
            if mine == theirs and run.seed not in arm:
                arm[run.seed] = run
                break
        else:
            arms.append({run.seed: run})
            settings.append(mine)
    taken: set[str] = set()
    found: list[Run] = []
    for arm in arms:
        members = list(arm.values())
        name = _common([run.arm for run in members])
        name = members[0].arm if name in taken else name
        taken.add(name)
        found += [replace(run, arm=name) for run in members]
    return found


def _common(names: Sequence[str]) -> str:
    """Return what names of seeds' folders have in common, without the word for the seed."""
    if len(names) == 1:
        return names[0]
    common = "".join(c[0] for c in takewhile(lambda c: len({*c}) == 1, zip(*names, strict=False)))
    if any(name[len(common) :][:1].isdigit() for name in names):
        common = common.rstrip("0123456789")  # of seeds 10 and 11
    return re.sub(r"(?:^|[-_./ ]+)(?:seed|s)?[-_./ ]*$", "", common) or f"{names[0]} and others"
