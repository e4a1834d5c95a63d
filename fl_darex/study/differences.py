"""In which settings arms differ, and which they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_darex.study.result import SEED, Arm, Result


@dataclass(frozen=True)
class Differences:
    """Settings of arms, without the seed and what the grid varies.

    Attributes:
        keys: Those in which arms differ.
        values: By arm and key; more than one where the points of a grid have their own, None where
            an arm does not have the key.
        common: What is the same everywhere, by key.
    """

    keys: Sequence[str]
    values: Mapping[str, Mapping[str, Sequence[Any]]]
    common: Mapping[str, Any]


def differences(result: Result) -> Differences:
    """Return in what arms differ, by the ``config.toml`` of their runs.

    An arm without a run has what the study says of it, and is compared in that alone.
    """
    varied = {SEED, *(key for point in result.grid for key in point)}
    arms = {arm.name: _configs(result, arm) for arm in result.arms}
    keys = dict.fromkeys(key for configs in arms.values() for one in configs for key in one)
    differ, common = [], {}
    values: dict[str, dict[str, Sequence[Any]]] = {name: {} for name in arms}
    for key in (key for key in keys if key not in varied):
        found = {name: _distinct(configs, key) for name, configs in arms.items()}
        whole = [found[name] for name in arms if _is_whole(arms[name]) or found[name] != [None]]
        if all(len(one) == 1 and one == whole[0] for one in whole):
            common[key] = whole[0][0]
            continue
        differ.append(key)
        for name, one in found.items():
            values[name][key] = one
    return Differences(differ, values, common)


def _configs(result: Result, arm: Arm) -> list[Mapping[str, Any]]:
    """Return an arm's settings at each point, as far as they are known."""
    found: list[Mapping[str, Any]] = []
    for point in result.points:
        runs = (run.config for run in result.planned(arm.name, point) if run.config)
        chosen = arm.chosen[point] if point < len(arm.chosen) else {}
        found.append(next(runs, {**arm.settings, **chosen}))
    return found


def _is_whole(configs: Sequence[Mapping[str, Any]]) -> bool:
    return any(SEED in config for config in configs)


def _distinct(configs: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found: list[Any] = []
    for config in configs:
        # 1 and True are equal, and not the same setting.
        if all((value, type(value)) != (config.get(key), type(config.get(key))) for value in found):
            found.append(config.get(key))
    there = [value for value in found if value is not None]
    return there or [None]
