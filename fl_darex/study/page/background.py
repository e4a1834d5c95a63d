"""The parts of the page that say how it came about: tuning, failures, settings, versions, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_darex.config.text import toml_scalar
from fl_darex.observers.files import CLIENTS, CONFIG, ROUNDS, SUMMARY, TRACEBACK
from fl_darex.study import numbers
from fl_darex.study.differences import differences
from fl_darex.study.page.html import Html, Part, join, tag
from fl_darex.study.page.tables import table
from fl_darex.study.read_study import STUDY
from fl_darex.study.result import Result, Run

Link = Callable[[Path, str], Html]


def tuning(result: Result) -> Html | None:
    """Return what was tried and what was chosen; None where nothing was tuned."""
    if not result.tuning:
        return None
    tried = Counter(trial.arm for trial in result.tuning)
    counts = table(
        "tuning-counts",
        "Tuning runs",
        ["arm", "runs"],
        [[name, str(tried[name])] for name in result.names],
        numbers=True,
    )
    several = len(result.grid) > 1
    rows = [
        [
            trial.arm,
            *([result.point_name(trial.point)] if several else []),
            _settings(trial.settings),
            numbers.metric(trial.metric),
            tag("strong", "chosen") if trial.chosen else "",
        ]
        for trial in result.tuning
    ]
    names = ["arm", *(["point"] if several else []), "settings", result.metric_name, "chosen"]
    return join(counts, table("tuning-trials", "What was tried", names, rows, pinned=True))


def unfinished(result: Result, link: Link) -> Html | None:
    """Return the runs that count nowhere, and why; None if all finished."""
    if not result.unfinished:
        return None
    rows = [
        [*_which(result, run), run.progress, run.reason or "—", _file(run, TRACEBACK, link)]
        for run in result.unfinished
    ]
    names = [*_which_names(result), "status", "reason", "whole error"]
    return table("unfinished-runs", "Runs that did not finish", names, rows)


def settings(result: Result) -> Html:
    """Return in what arms differ, and what they share."""
    found = differences(result)
    parts: list[Html] = []
    if varied := [name for name in map(result.point_name, result.points) if name]:
        points = (tag("li", tag("code", name)) for name in varied)
        parts.append(join(tag("p", "Points of the grid:"), tag("ul", *points)))
    if found.keys:
        rows = [
            [name, *(_values(found.values[name][key]) for key in found.keys)]
            for name in result.names
        ]
        names: list[Part] = ["arm", *(tag("code", key) for key in found.keys)]
        caption = "Settings in which arms differ"
        parts.append(table("differences", caption, names, rows, pinned=True))
    elif len(result.arms) > 1:
        parts.append(tag("p", "The arms differ in no setting."))
    if found.common:
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in found.common.items())
        count = f"{len(found.common)} settings"
        words = f"{count} that all arms share" if len(result.arms) > 1 else count
        block = tag("pre", text, tabindex="0", role="region", aria_label=words)
        parts.append(tag("details", tag("summary", words), block))
    return join(*parts)


def origin(result: Result, link: Link) -> Html:
    """Return versions, seeds, the command, and links to the data."""
    seeds = ", ".join(map(str, result.seeds))
    facts = [["seeds", seeds]]
    if result.command:
        facts.append(["command", tag("code", result.command)])
    facts += [[name, version] for name, version in result.versions.items()]
    rows = [
        [
            *_which(result, run),
            run.progress,
            join(
                *(
                    part
                    for n in (SUMMARY, ROUNDS, CLIENTS, CONFIG)
                    for part in (_file(run, n, link), " ")
                )
            ),
        ]
        for run in result.runs
    ]
    data = table("runs", "Runs and their files", [*_which_names(result), "status", "files"], rows)
    parts = [table("facts", "How it was made", ["what", "which"], facts)]
    if (result.folder / STUDY).is_file():
        parts.append(tag("p", "The study: ", link(result.folder / STUDY, STUDY), "."))
    summary = f"{len(result.runs)} {'run' if len(result.runs) == 1 else 'runs'} and their files"
    return join(*parts, tag("details", tag("summary", summary), data))


def _which_names(result: Result) -> list[str]:
    return ["arm", *(["point"] if len(result.grid) > 1 else []), "seed"]


def _which(result: Result, run: Run) -> list[Part]:
    point = [result.point_name(run.point)] if len(result.grid) > 1 else []
    return [run.arm, *point, str(run.seed)]


def _file(run: Run, name: str, link: Link) -> Html:
    there = run.curve is not None or (run.folder / CONFIG).is_file()
    path = run.folder / name
    return link(path, name) if there and path.is_file() else Html("")


def _settings(values: Mapping[str, Any]) -> Html:
    shown = ", ".join(f"{key} = {value}" for key, value in values.items())
    return tag("code", shown) if shown else Html("—")


def _values(values: Sequence[Any]) -> Html:
    shown = ", ".join("—" if value is None else str(value) for value in values)
    return tag("code", shown or '""')


def _toml(value: Any) -> str:
    return toml_scalar(value) if isinstance(value, str | int | float | bool) else repr(value)
