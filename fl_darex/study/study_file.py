"""``STUDY.toml``: which runs are compared, on which seeds, and how settings are chosen.

::

    title = "Digits"
    base = "../quickstart.toml"        # a run's configuration, relative to this file
    seeds = [1, 2, 3]
    reference = "dense"                # the arm that others are compared with
    target = 0.99                      # bytes count until this part of the reference's metric
    budgets = ["100 kB", "1 MB"]       # bytes of a whole run at which metrics are read
    links = [[1, 10], [10, 100]]       # Mbit/s up and down, for time on the wire

    [all]                              # settings of every run
    federation.rounds = 30

    [grid]                             # every arm is run with every combination of these
    federation.partition = ["iid", "dirichlet"]

    [tune]                             # tried for each arm; the best on tuning examples is taken
    examples = 300
    seed = 0
    target = 0.95                      # of the reference's best trial; fewest bytes to it are best
    train.lr = [3e-4, 1e-3, 3e-3]
    federation.rounds = 10             # a scalar is a setting of all trials

    [arms.dense]
    compress.method = "dense"

    [arms."top-k"]
    compress.method = "topk"
    tune.compress.p = [0.97, 0.99]     # beside train.lr; or in place of a list of [tune]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_darex.config import read_file
from fl_darex.config.text import Scalar, flatten
from fl_darex.errors import ConfigError, nearest
from fl_darex.study.values import (
    a_link,
    a_list,
    a_number,
    a_size,
    a_text,
    check_sections,
    lists,
    scalars,
    seeds,
    table,
)

Settings = Mapping[str, Scalar]
Knobs = Mapping[str, Sequence[Scalar]]

SEED, TUNING = "federation.seed", "task.tuning-examples"
_TOP = (
    *("title", "base", "seeds", "reference", "target", "budgets", "links"),
    *("all", "grid", "tune", "arms"),
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of what is compared.

    Attributes:
        name: As tables show it.
        settings: On top of those of all runs.
        knobs: What is tried for it, by key: lists of values.
    """

    name: str
    settings: Settings
    knobs: Knobs = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the settings of arms are chosen.

    Attributes:
        examples: So many training examples are measured on, which no trial trains on.
        seed: Of all trials; none of the study's.
        target: Part of the final metric of the reference's best trial: of trials that reach it, the
            one is best that sends the fewest bytes until then. None: the best final metric is.
        settings: Of all trials, such as fewer rounds.
    """

    examples: int
    seed: int
    target: float | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its file says it; what a key means is checked when runs are planned.

    Attributes:
        title: Of tables and pages.
        settings: Of every run.
        arms: In the file's order.
        seeds: Of every arm.
        grid: Settings that every arm is run with in turn; one without any where there is no grid.
        tuning: None: nothing is chosen.
        reference: Name of the arm that others are compared with; empty: none.
        target: Part of the reference's final metric until which bytes are counted.
        budgets: Bytes both ways at which metrics are read.
        links: Rates up and down, Mbit/s.
    """

    title: str
    settings: Settings
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    grid: tuple[Settings, ...] = ({},)
    tuning: Tuning | None = None
    reference: str = ""
    target: float = 0.99
    budgets: tuple[int, ...] = ()
    links: tuple[tuple[float, float], ...] = ()


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        ConfigError: If it cannot be read, or says what no study can be.
    """
    tree = _tree(path)
    if odd := sorted(set(tree) - set(_TOP)):
        allowed = ", ".join(_TOP)
        raise ConfigError(f"unknown key {odd[0]!r}; allowed: {allowed}{nearest(odd[0], _TOP)}")
    base: dict[str, Any] = {}
    if "base" in tree:
        base = read_file(path.parent / a_text("base", tree["base"]))
    tuning, common = _tuning(table("tune", tree.get("tune", {})))
    arms = tuple(
        _arm(name, one, common) for name, one in table("arms", tree.get("arms", {})).items()
    )
    if not arms:
        raise ConfigError(f"{str(path)!r} has no arms; write [arms.NAME] with an arm's settings")
    if tuning is None and (odd_arm := next((arm for arm in arms if arm.knobs), None)):
        raise ConfigError(
            f"arms.{odd_arm.name}.tune needs a table [tune] with examples = N, the training "
            "examples to choose on"
        )
    study = Study(
        title=a_text("title", tree.get("title", path.stem)),
        settings=base | scalars("all", tree.get("all", {})),
        arms=arms,
        seeds=seeds(tree.get("seeds", [0])),
        grid=combinations(lists("grid", tree.get("grid", {}))),
        tuning=tuning,
        reference=a_text("reference", tree.get("reference", "")),
        target=a_number("target", tree.get("target", 0.99), 0.0, 10.0),
        budgets=tuple(a_size(one) for one in a_list("budgets", tree.get("budgets", []))),
        links=tuple(a_link(one) for one in a_list("links", tree.get("links", []))),
    )
    _check(study)
    return study


def combinations(knobs: Knobs) -> tuple[Settings, ...]:
    """Return all combinations of some lists; of no list, the one without a setting."""
    found: tuple[dict[str, Scalar], ...] = ({},)
    for key, values in knobs.items():
        found = tuple(one | {key: value} for one in found for value in values)
    return found


def _check(study: Study) -> None:
    names = [arm.name for arm in study.arms]
    if study.reference and study.reference not in names:
        raise ConfigError(
            f"reference = {study.reference!r} is no arm; arms: {', '.join(map(repr, names))}"
            f"{nearest(study.reference, names)}"
        )
    if study.tuning is not None and study.tuning.target is not None and not study.reference:
        raise ConfigError(
            "tune.target is a part of what the reference reaches: set reference = 'NAME OF AN "
            "ARM', or leave it out"
        )
    if study.tuning is not None and study.tuning.seed in study.seeds:
        raise ConfigError(
            f"tune.seed = {study.tuning.seed} is among seeds = {list(study.seeds)}; choose on "
            "another one, so that no result is of the run that its settings were chosen on"
        )
    where: list[tuple[str, Iterable[str]]] = [("all and base", study.settings)]
    where += [("grid", study.grid[0])]
    where += [(f"arms.{arm.name}", (*arm.settings, *arm.knobs)) for arm in study.arms]
    for place, keys in where:
        for key, instead in ((SEED, "seeds"), (TUNING, "tune.examples")):
            if key in keys:
                raise ConfigError(f"{place} sets {key}; a study says {instead} instead")


def _tree(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the study {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {error}") from None


def _arm(name: str, given: Any, common: Knobs) -> Arm:
    where = f"arms.{name}"
    tree = dict(table(where, given))
    knobs = dict(common) | lists(f"{where}.tune", tree.pop("tune", {}))
    settings = scalars(where, tree)
    # What an arm fixes is not tried.
    return Arm(
        name=name,
        settings=settings,
        knobs={key: values for key, values in knobs.items() if key not in settings},
    )


def _tuning(tree: Mapping[str, Any]) -> tuple[Tuning | None, Knobs]:
    """Return how settings are chosen, and what is tried for every arm."""
    if not tree:
        return None, {}
    own = ("examples", "seed", "target")
    rest = flatten({key: value for key, value in tree.items() if key not in own})
    check_sections("tune", rest, own)
    knobs = {key: value for key, value in rest.items() if isinstance(value, list)}
    settings = {key: value for key, value in rest.items() if key not in knobs}
    examples = tree.get("examples")
    if type(examples) is not int or examples < 1:
        raise ConfigError(
            f"tune.examples = {examples!r} is not allowed; it must be a whole number from 1: the "
            "training examples that trials are measured on"
        )
    (seed,) = seeds([tree.get("seed", 0)], "tune.seed")
    target = a_number("tune.target", tree["target"], 0.0, 10.0) if "target" in tree else None
    found = Tuning(examples=examples, seed=seed, target=target, settings=scalars("tune", settings))
    return found, lists("tune", knobs)
