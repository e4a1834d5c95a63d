"""A study's file, the runs that follow from it, and what trials choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_measures import run_folder

from fl_darex.errors import ConfigError
from fl_darex.study import plan
from fl_darex.study.study_file import Study, read_study
from fl_darex.study.sweep import has_lists, sweep
from fl_darex.study.tuning import choose

WHOLE = """
title = "Digits"
base = "base.toml"
seeds = [1, 2]
reference = "dense"
target = 0.98
budgets = ["100 kB", 2000]
links = [[1, 10], [0.5, 8]]

[all]
federation.rounds = 7
"train.local-steps" = 3

[grid]
federation.partition = ["iid", "dirichlet"]

[tune]
examples = 100
federation.rounds = 2
train.lr = [1e-3, 3e-3, 1e-2]

[arms.dense]
compress.method = "dense"

[arms."DARE, p = .99"]
compress.p = 0.99
federation.rounds = 9

[arms.magnitude]
compress.method = "magnitude"
train.lr = 1e-3
tune.compress.p = [0.9, 0.99]
"""


def study(folder: Path, text: str = WHOLE) -> Study:
    (folder / "base.toml").write_text("[federation]\nclients = 4\n[train]\nlr = 0.5\n")
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml")


def test_a_file_says_arms_seeds_grid_and_what_is_tried(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert (found.title, found.reference, found.target) == ("Digits", "dense", 0.98)
    assert found.seeds == (1, 2) and found.budgets == (100_000, 2000)
    assert found.links == ((1, 10), (0.5, 8))
    assert found.settings == {
        "federation.clients": 4,
        "federation.rounds": 7,
        "train.lr": 0.5,
        "train.local-steps": 3,
    }
    assert found.grid == ({"federation.partition": "iid"}, {"federation.partition": "dirichlet"})
    rates = {"train.lr": [1e-3, 3e-3, 1e-2]}
    assert [(arm.name, arm.knobs) for arm in found.arms] == [
        ("dense", rates),
        ("DARE, p = .99", rates),
        ("magnitude", {"compress.p": [0.9, 0.99]}),
    ]


def test_trials_are_short_on_tuning_examples_and_a_seed_of_their_own(tmp_path: Path) -> None:
    found = plan.trials(study(tmp_path))
    assert len(found) == 2 * (3 + 3 + 2)
    assert {one.seed for one in found} == {0}
    for one in found:
        assert one.config.task.tuning_examples == 100 and one.config.federation.rounds == 2
        assert one.config.train.local_steps == 3
    one = next(one for one in found if one.arm == "magnitude" and one.point == 1)
    assert one.folder == "tuning/magnitude/partition=dirichlet/p=0.9"
    assert one.tried == {"compress.p": 0.9} and one.config.compress.p == 0.9
    assert one.config.train.lr == 1e-3 and one.config.federation.partition == "dirichlet"


def test_runs_take_what_was_chosen_and_all_arms_come_with_the_first_seed(tmp_path: Path) -> None:
    chosen: dict[tuple[str, int], dict[str, Any]] = {("dense", 0): {"train.lr": 3e-3}}
    found = plan.runs(study(tmp_path), chosen)
    assert [(one.arm, one.point, one.seed) for one in found] == [("dense", 0, 1), ("dense", 0, 2)]
    assert found[0].config.train.lr == 3e-3 and not found[0].config.task.tuning_examples
    assert found[0].folder == "runs/dense/partition=iid/seed-1"
    everything = {(arm, point): chosen["dense", 0] for arm in ("dense",) for point in (0, 1)}
    everything |= {("DARE, p = .99", 1): {"train.lr": 1e-3}}
    order = [(one.seed, one.point, one.arm) for one in plan.runs(study(tmp_path), everything)]
    assert order == sorted(order, key=lambda row: row[:2]) and len(order) == 6
    last = plan.runs(study(tmp_path), everything)[-1]
    assert last.folder == "runs/DARE,-p-=-.99/partition=dirichlet/seed-2"
    assert last.config.federation.rounds == 9


def test_runs_that_differ_in_a_setting_differ_in_identity(tmp_path: Path) -> None:
    everything = [*plan.trials(study(tmp_path))]
    assert len({one.identity for one in everything}) == len(everything)
    again = plan.trials(study(tmp_path, WHOLE.replace("federation.rounds = 2", "#")))
    assert not {one.identity for one in everything} & {one.identity for one in again}


def test_unequal_numbers_of_trials_and_choices_at_an_end_are_said(tmp_path: Path) -> None:
    found = study(tmp_path)
    (line,) = plan.check(found)
    assert line == (
        "arms differ in the number of settings that are tried for them (2: magnitude; 3: dense, "
        "DARE, p = .99)"
    )
    dense = found.arms[0]
    assert plan.edges(dense, {"train.lr": 3e-3}) == []
    (line,) = plan.edges(dense, {"train.lr": 1e-2})
    assert line == "dense: train.lr = 0.01 is at an end of what was tried"


REFUSED = {
    "seed = 1\n": r"unknown key 'seed'; allowed: title, base, .*did you mean 'seeds'\?",
    "reference = 'dens'\n": r"reference = 'dens' is no arm; arms: 'a', 'b'",
    "base = 'nowhere.toml'\n": "cannot read the configuration .*nowhere.toml",
    "seeds = []\n": r"seeds = \[\] is not allowed; it must be whole numbers from 0, each once",
    "seeds = [1, 1]\n": "each once",
    "seeds = 3\n": "seeds = 3 is not allowed; it must be a list",
    "target = 0\n": "target = 0 is not allowed; it must be a number above 0 to 10",
    "budgets = ['many']\n": "budgets has 'many'; write numbers of bytes above 0",
    "links = [1, 10]\n": r"links has 1; write pairs \[up, down\] in Mbit/s",
    "links = [[0, 1]]\n": "links = 0 is not allowed; it must be a number above 0",
    "title = 3\n": "title = 3 is not allowed; it must be text",
    "[all]\nrounds = 3\n": "all has the unknown key 'rounds'; allowed: task.KEY, federation.KEY",
    "[all]\nfederation.rounds = [1, 2]\n": r"all sets federation.rounds = \[1, 2\]; it must be one",
    "[all]\nfederation.seed = 3\n": "all and base sets federation.seed; a study says seeds instead",
    "[grid]\nfederation.seed = [3]\n": "grid sets federation.seed; a study says seeds instead",
    "[grid]\ncompress.p = 0.9\n": "grid has compress.p = 0.9; it must be a list of values",
    "[grid]\ncompress.p = [0.9, 0.9]\n": "it must be a list of values, each once",
    "[tune]\ntrain.lr = [1e-3]\n": "tune.examples = None is not allowed",
    "[tune]\nexamples = 5\nseed = -1\n": r"tune.seed = \[-1\] is not allowed",
    "[tune]\nexamples = 5\nlr = [1e-3]\n": "unknown key 'lr'; allowed: examples, seed, target, ",
    "[tune]\nexamples = 5\n[arms.c]\ntune.p = [0.9]\n": "arms.c.tune has the unknown key 'p'",
    "[arms.c]\ntune.compress.p = [0.9]\n": r"arms.c.tune needs a table \[tune\] with examples",
    "[arms.c]\ntask.tuning-examples = 3\n": "arms.c sets task.tuning-examples; .* tune.examples",
    "[tune]\nexamples = 5\ntarget = 0.9\n": "tune.target is a part of what the reference reaches",
    "[tune]\nexamples = 5\ntarget = -1\n": "tune.target = -1 is not allowed; it must be a number",
    "seeds = [0]\n[tune]\nexamples = 5\n": r"tune.seed = 0 is among seeds = \[0\]; choose on an",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_study_can_be_is_refused_with_what_is_allowed(text: str, tmp_path: Path) -> None:
    arms = "[arms.a]\n[arms.b]\n"
    seeds = "" if "seed" in text.partition("[")[0] else "seeds = [1]\n"
    with pytest.raises(ConfigError, match=REFUSED[text]):
        study(tmp_path, f"{seeds}{text}{arms}")


def test_a_file_without_arms_or_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no arms; write \[arms.NAME\]"):
        study(tmp_path, "seeds = [1]\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        study(tmp_path, "seeds = [1\n")
    with pytest.raises(ConfigError, match="cannot read the study"):
        read_study(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("compress.pp = 0.9", r"arm 'a': unknown key 'compress.pp'; did you mean 'compress.p'\?"),
        ("compress.p = 2.0", "arm 'a': compress.p = 2.0 is not allowed"),
        (
            "train.optimizer = 'adamw'\ntrain.delta-decay = 0.1",
            "'a': train.delta-decay = 0.1 has no",
        ),
    ],
)
def test_an_arm_that_no_run_can_have_is_refused_by_name(
    settings: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.check(study(tmp_path, f"[arms.a]\n{settings}\n"))


def test_arms_whose_names_give_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two arms have names that are equal but for signs"):
        plan.check(study(tmp_path, '[arms."a b"]\n[arms."a/b"]\n'))


def write_summary(folder: Path, metric: float | None, size: int, status: str = "finished") -> None:
    folder.mkdir(parents=True)
    row = {"status": status, "final_metric": metric, "total_bytes": size}
    (folder / "summary.json").write_text(json.dumps(row))


TRIED = "[tune]\nexamples = 5\ntrain.lr = [1e-3, 3e-3, 1e-2]\n[arms.a]\n"


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([(0.5, 9), (0.7, 9), (0.6, 1)], 3e-3),
        ([(0.7, 9), (0.7, 8), (0.7, 8)], 3e-3),
        ([(None, 9), (float("nan"), 8), (0.1, 10)], 1e-2),
        ([(None, 9), (None, 8), (None, 8)], None),
    ],
)
def test_the_best_metric_is_chosen_then_the_fewest_bytes_then_the_first(
    trials: list[tuple[float | None, int]], chosen: float | None, tmp_path: Path
) -> None:
    found = study(tmp_path, "seeds = [1]\n" + TRIED)
    planned = plan.trials(found)
    for one, (metric, size) in zip(planned, trials, strict=True):
        write_summary(tmp_path / one.folder, metric, size)
    made = choose(tmp_path, found, planned)
    assert [dict(one.settings) for one in made] == ([{"train.lr": chosen}] if chosen else [])


def test_with_a_target_the_fewest_bytes_to_it_are_best_and_metrics_where_it_is_not_reached(
    tmp_path: Path,
) -> None:
    tune = "[tune]\nexamples = 5\ntarget = 0.9\ntrain.lr = [1e-3, 3e-3, 1e-2]\n"
    text = f"seeds = [1]\nreference = 'dense'\n{tune}[arms.dense]\n[arms.a]\n[arms.b]\n"
    said = study(tmp_path, text)
    planned = plan.trials(said)
    curves: list[list[float | None]] = [
        *([0.5, 0.9, 1.0], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]),  # the goal is .9
        *([0.5, 0.8, 0.99], [0.5, 0.91, 0.92], [0.8, 0.85, 0.89]),
        *([0.1, 0.2, 0.3], [0.5, 0.5, 0.2], [0.1, 0.1, 0.31]),
    ]
    for one, metrics in zip(planned, curves, strict=True):
        summary = {"final_metric": metrics[-1], "total_bytes": 18_100}
        run_folder(tmp_path / one.folder, metrics, **summary)
    found = {one.arm: one.settings["train.lr"] for one in choose(tmp_path, said, planned)}
    assert found == {"dense": 1e-3, "a": 3e-3, "b": 1e-2}


def test_nothing_is_chosen_while_a_trial_is_to_come_and_failed_ones_do_not_count(
    tmp_path: Path,
) -> None:
    said = study(tmp_path, "seeds = [1]\n" + TRIED)
    planned = plan.trials(said)
    write_summary(tmp_path / planned[0].folder, 0.5, 9)
    write_summary(tmp_path / planned[1].folder, 0.9, 9, "failed")
    assert choose(tmp_path, said, planned) == []
    write_summary(tmp_path / planned[2].folder, 0.4, 9)
    (found,) = choose(tmp_path, said, planned)
    assert found.settings == {"train.lr": 1e-3} and found.trial == planned[0].folder


def sweep_of(folder: Path, *overrides: str) -> Study:
    (folder / "base.toml").write_text("[federation]\nclients = 4\nseed = 7\n")
    return sweep(folder / "base.toml", overrides)


def test_several_values_of_settings_make_a_study_of_all_their_combinations(tmp_path: Path) -> None:
    found = sweep_of(tmp_path, "compress.p=.99,.999", "train.lr=1e-3", "compress.method=dare,wanda")
    assert [arm.name for arm in found.arms] == [
        *("p=0.99, method=dare", "p=0.99, method=wanda"),
        *("p=0.999, method=dare", "p=0.999, method=wanda"),
    ]
    assert found.seeds == (7,) and found.settings == {"federation.clients": 4, "train.lr": 1e-3}
    assert found.arms[0].settings == {"compress.p": 0.99, "compress.method": "dare"}
    found = sweep_of(tmp_path, "federation.seed=3,4", "compress.q=dare,0.02")
    assert found.seeds == (3, 4)
    assert [arm.settings["compress.q"] for arm in found.arms] == ["dare", 0.02]
    assert [arm.name for arm in sweep_of(tmp_path, "federation.seed=3,4").arms] == ["all"]


def test_values_that_may_have_commas_are_one(tmp_path: Path) -> None:
    one = ["task.text-columns=title,body", "resources.classes=0-9: num-gpus=1", "compress.q='a,b'"]
    assert not has_lists(one) and has_lists([*one, "compress.p=.9,.99"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compress.p=.9,.9"], "'compress.p=.9,.9' says something twice"),
        (["compress.p=.9,.99", "compress.p=.5,.6"], "'compress.p=.5,.6' says something twice"),
        (["federation.seed=1,x"], r"federation.seed = \[1, 'x'\] is not allowed"),
    ],
)
def test_a_sweep_that_says_nothing_clear_is_refused(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(tmp_path, *overrides)
