"""``fl-darex run CONFIG compress.p=.99,.999``: a small study, without a file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_darex.config import read_file, read_overrides
from fl_darex.config.text import Scalar
from fl_darex.errors import ConfigError
from fl_darex.study.study_file import SEED, Arm, Study, combinations
from fl_darex.study.values import seeds

_WITH_COMMAS = (
    *("task.model", "task.dataset", "task.text-columns", "train.lora-targets"),
    *("resources.classes", "resources.custom"),
)
"""Keys of which one value may have commas."""


def has_lists(overrides: Sequence[str]) -> bool:
    """Return whether one of some ``key=value`` has several values, divided by commas."""
    return any(_several(one) for one in overrides)


def sweep(path: Path, overrides: Sequence[str]) -> Study:
    """Return the study of all combinations of some values; several seeds are its seeds.

    Args:
        path: A run's configuration.
        overrides: Settings as ``key=value`` or ``key=value,value``.

    Raises:
        ConfigError: If the file cannot be read, or a key has one value twice, or is given twice.
    """
    settings = read_file(path)
    lists: dict[str, list[Scalar]] = {}
    for one in overrides:
        found = [read_overrides([each]) for each in _several(one) or [one]]
        if len(found) == 1:
            settings |= found[0]
            continue
        (key,) = found[0]
        values = [each[key] for each in found]
        if key in lists or len(set(values)) < len(values):
            raise ConfigError(f"{one!r} says something twice; write each key and each value once")
        lists[key] = values
    some = seeds(lists.pop(SEED, [settings.pop(SEED, 0)]), SEED)
    settings.pop(SEED, None)
    arms = tuple(Arm(name=_name(one), settings=one) for one in combinations(lists))
    return Study(title=path.stem, settings=settings, arms=arms, seeds=some)


def _several(override: str) -> list[str]:
    """Return a ``key=value`` for each of several values; nothing where there is one."""
    key, _, text = override.partition("=")
    if key.strip() in _WITH_COMMAS or "," not in text or text.strip()[:1] in ("'", '"', "[", "{"):
        return []
    return [f"{key}={value}" for value in text.split(",")]


def _name(settings: Mapping[str, Scalar]) -> str:
    parts = (f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    return ", ".join(parts) or "all"
