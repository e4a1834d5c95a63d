"""Which runs a study has: each with its configuration, and the folder that it belongs in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fl_darex.config import RunConfig, make_config
from fl_darex.config.going_on import identity
from fl_darex.config.idle import refuse_idle
from fl_darex.config.paths import resolved
from fl_darex.errors import ConfigError
from fl_darex.study.study_file import SEED, TUNING, Arm, Settings, Study, combinations

_LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a study.

    Attributes:
        arm: Name of its arm.
        point: Place in the study's grid.
        seed: The run's.
        config: All that it is.
        folder: Where it belongs, relative to the study's.
        tried: What a trial tries; None: it is no trial.
    """

    arm: str
    point: int
    seed: int
    config: RunConfig
    folder: str
    tried: Settings | None = None

    @property
    def identity(self) -> str:
        """16 hex digits of all settings that make it what it is."""
        settings = identity(self.config) | {"federation.rounds": self.config.federation.rounds}
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def trials(study: Study) -> list[Planned]:
    """Return what is tried to choose the settings of arms, those of an arm one after the other.

    Raises:
        ConfigError: If a configuration is not allowed, or sets what does nothing.
    """
    tuning = study.tuning
    if tuning is None:
        return []
    shared = {**tuning.settings, TUNING: tuning.examples}
    return [
        Planned(
            arm=arm.name,
            point=place,
            seed=tuning.seed,
            config=_config(study, arm, point, tried, shared, tuning.seed),
            folder=f"tuning/{_folder(study, arm, place)}/{_name(tried)}",
            tried=tried,
        )
        for arm in study.arms
        if arm.knobs
        for place, point in enumerate(study.grid)
        for tried in combinations(arm.knobs)
    ]


def runs(study: Study, chosen: Mapping[tuple[str, int], Settings]) -> list[Planned]:
    """Return a study's runs, all arms with the first seed before any with the second.

    Args:
        study: The study.
        chosen: The settings that were chosen, by arm and place in the grid. An arm whose settings
            are still to be chosen has no runs.

    Raises:
        ConfigError: If a configuration is not allowed, or sets what does nothing.
    """
    return [
        Planned(
            arm=arm.name,
            point=place,
            seed=seed,
            config=_config(study, arm, point, chosen.get((arm.name, place), {}), {}, seed),
            folder=f"runs/{_folder(study, arm, place)}/seed-{seed}",
        )
        for seed in study.seeds
        for place, point in enumerate(study.grid)
        for arm in study.arms
        if not arm.knobs or (arm.name, place) in chosen
    ]


def check(study: Study) -> list[str]:
    """Refuse a study of which a run would be refused; return what a person should know of it.

    Raises:
        ConfigError: If a configuration is not allowed, or sets what does nothing.
    """
    trials(study)
    some = {
        (arm.name, place): combinations(arm.knobs)[0]
        for arm in study.arms
        for place in range(len(study.grid))
    }
    planned = runs(study, some)
    if len({one.folder for one in planned}) < len(planned):
        raise ConfigError("two arms have names that are equal but for signs; rename one of them")
    return unequal_budgets(study)


def unequal_budgets(study: Study) -> list[str]:
    """Return a line where arms were chosen from different numbers of trials; else nothing."""
    counts = {arm.name: len(combinations(arm.knobs)) if arm.knobs else 0 for arm in study.arms}
    if study.tuning is None or len(set(counts.values())) < 2:
        return []
    by_count: dict[int, list[str]] = {}
    for name, count in counts.items():
        by_count.setdefault(count, []).append(name)
    shown = "; ".join(f"{n}: {', '.join(names)}" for n, names in sorted(by_count.items()))
    return [f"arms differ in the number of settings that are tried for them ({shown})"]


def edges(arm: Arm, chosen: Settings) -> list[str]:
    """Return a line for each chosen number at an end of its list, beyond which a better may lie."""
    lines = []
    for key, value in chosen.items():
        numbers = [one for one in arm.knobs[key] if not isinstance(one, str | bool)]
        if len(numbers) > 1 and value in (min(numbers), max(numbers)):
            lines.append(f"{arm.name}: {key} = {value} is at an end of what was tried")
    return lines


def _config(
    study: Study, arm: Arm, point: Settings, tried: Settings, shared: Settings, seed: int
) -> RunConfig:
    # A trial may be shorter than its arm's runs; what is tried is what it is for.
    values = {**study.settings, **point, **arm.settings, **shared, **tried, SEED: seed}
    try:
        config = make_config(values)
        refuse_idle(config, (*arm.settings, *tried), "local")
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from None
    return resolved(config)


def _folder(study: Study, arm: Arm, place: int) -> str:
    point = study.grid[place]
    return f"{_slug(arm.name)}/{_name(point)}" if point else _slug(arm.name)


def _name(settings: Settings) -> str:
    """Return settings as the name of a folder, by the last words of their keys."""
    return _slug(",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()))


def _slug(text: str) -> str:
    """Return a text as a folder's name: letters, digits and few signs, and not too long."""
    plain = re.sub(r"[^\w.,=+-]+", "-", text).strip("-.") or "-"
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
