"""Folders as results: what is read, what counts, and what is refused with a way out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from studies import entry, write_run, write_study

from fl_darex.errors import ConfigError
from fl_darex.study.differences import differences
from fl_darex.study.read_folders import load_result
from fl_darex.study.result import Result

P = {"compress.p": 0.9}
WITHOUT = {"federation.evaluate": "none"}


def statuses(result: Result) -> dict[str, str]:
    return {f"{run.arm}/{run.seed}": run.status for run in result.runs}


def test_runs_that_differ_in_the_seed_alone_are_seeds_of_one_arm(tmp_path: Path) -> None:
    folders = [
        *(
            write_run(tmp_path / f"p90-seed-{s}", settings=P | {"federation.seed": s})
            for s in (9, 10)
        ),
        *(
            write_run(
                tmp_path / f"dense-s{s}",
                settings={"compress.method": "dense", "federation.seed": s},
            )
            for s in (10, 11)
        ),
    ]
    result = load_result(*folders)
    assert result.names == ["p90", "dense"] and result.seeds == [9, 10, 11]
    assert [run.seed for run in result.whole("p90", 0)] == [9, 10]
    assert (result.reference, result.target) == ("dense", 0.99)
    assert result.metric_name == "accuracy" and not result.unfinished


def test_arms_are_named_by_what_their_paths_differ_in(tmp_path: Path) -> None:
    paths = {"a/point-0/seed-1": 0.9, "a/point-0/seed-2": 0.9, "b/point-0/seed-1": 0.8}
    folders = [
        write_run(
            tmp_path / path,
            settings={"compress.p": p, "federation.seed": int(path.rpartition("-")[2])},
        )
        for path, p in paths.items()
    ]
    assert load_result(*folders).names == ["a", "b/seed-1"]
    assert load_result(folders[0], folders[0]).names == ["seed-1"]


def test_the_same_run_again_is_another_arm(tmp_path: Path) -> None:
    result = load_result(write_run(tmp_path / "first"), write_run(tmp_path / "again"))
    assert result.names == ["first", "again"] and result.reference is None


def test_a_study_names_every_run_that_it_planned(tmp_path: Path) -> None:
    write_run(tmp_path / "d1")
    write_run(tmp_path / "d2", [0.5, 0.6])
    write_run(tmp_path / "torn")
    (tmp_path / "torn" / "rounds.jsonl").write_text("{]\n", "utf-8")
    runs = [
        entry("dense", 1, "d1"),
        entry("dense", 2, "d2", "running"),
        entry("p", 1, "torn"),
        entry("p", 2, "nowhere", "failed", reason="no memory"),
        entry("r", 1, "nowhere", "missing"),
        entry("s", 1, "nowhere", "running"),
        entry("s", 2, "nowhere", "finished"),
    ]
    result = load_result(write_study(tmp_path, runs))
    assert result.study and result.title == "A study"
    assert statuses(result) == {
        "dense/1": "finished",
        "dense/2": "running",
        "p/1": "unreadable",
        "p/2": "failed",
        "r/1": "missing",
        "r/2": "missing",
        "s/1": "running",
        "s/2": "missing",
    }
    reasons = {f"{run.arm}/{run.seed}": run.reason for run in result.runs}
    assert reasons["p/2"] == "no memory" and "cannot be read" in reasons["p/1"]
    assert reasons["r/2"] == "study.json has no such run"
    assert [run.seed for run in result.shown("dense", 0)] == [1], "a part of a run is no mean"
    assert result.runs[1].progress == "running, 2 of 4 rounds"


def test_what_a_study_says_of_a_failure_counts_and_a_run_that_went_on_since_does_too(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", status="interrupted", reason="SIGTERM")
    runs = [
        entry("a", 1, "a", "failed", reason="other settings than planned"),
        entry("a", 2, "a", "running"),
        entry("b", 1, "b", "finished"),
    ]
    result = load_result(write_study(tmp_path, runs, seeds=[1]))
    assert statuses(result) == {"a/1": "failed", "a/2": "finished", "b/1": "interrupted"}
    assert result.runs[2].reason == "SIGTERM"


def test_a_metric_that_was_no_number_at_the_end_is_not_the_one_before(tmp_path: Path) -> None:
    finals = {
        "measured": ([0.5, None, 0.7, None], {"final_metric": 0.7}),
        "diverged": ([0.5, 0.6, None, None], {"final_metric": None}),
        "at once": ([None] * 4, {}),
        "written as NaN": ([0.5, 0.6, 0.7, math.nan], {}),
        "behind": ([0.5], {"final_metric": None, "rounds": 0}),
    }
    for name, (metrics, told) in finals.items():
        write_run(tmp_path / name, metrics, **told)
    found = {name: load_result(tmp_path / name).runs[0].final for name in finals}
    assert (found["measured"], found["behind"]) == (0.7, 0.5)
    for name in ("diverged", "at once", "written as NaN"):
        assert found[name] is not None and math.isnan(found[name]), name
    unmeasured = write_run(tmp_path / "none", [None] * 4, WITHOUT, initial_metric=None)
    assert load_result(unmeasured).runs[0].final is None


def test_settings_are_what_differs_and_what_does_not(tmp_path: Path) -> None:
    grid = [{"federation.partition": "iid"}, {"federation.partition": "pathological"}]
    runs = []
    for arm, p in (("a", 0.9), ("b", 0.8)):
        for point, settings in enumerate(grid):
            lr = 0.01 if (arm, point) == ("b", 1) else 0.001
            told = {"compress.p": p, "train.lr": lr, **settings}
            write_run(tmp_path / f"{arm}{point}", settings=told)
            runs.append(entry(arm, 1, f"{arm}{point}", point=point))
    arms = [{"name": "a"}, {"name": "b"}, {"name": "c", "settings": {"compress.p": 0.9}}]
    found = differences(load_result(write_study(tmp_path, runs, grid=grid, arms=arms)))
    assert sorted(found.keys) == ["compress.p", "train.lr"]
    assert found.values["b"] == {"compress.p": [0.8], "train.lr": [0.001, 0.01]}
    assert found.values["c"] == {"compress.p": [0.9], "train.lr": [None]}
    assert found.common["federation.rounds"] == 4
    assert not {"federation.seed", "federation.partition"} & {*found.common, *found.keys}


def test_what_is_no_run_is_refused_with_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        ("empty", "neither a run folder nor a study's folder: it has no config.toml and no study"),
        ("file", "is a file; name run folders, or a study's folder"),
        ("gone", "is not there; name run folders, or a study's folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_result(tmp_path / name)
    with pytest.raises(ConfigError, match="name a run folder, a study's folder, or several"):
        load_result()
    study = write_study(tmp_path / "study", [entry("a", 1, "a", "missing")])
    with pytest.raises(ConfigError, match="holds a study; name it alone"):
        load_result(write_run(tmp_path / "run"), study)


def test_runs_that_measure_different_things_are_not_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", metric_name="f1")]
    with pytest.raises(ConfigError, match="accuracy in 'a', f1 in 'b'; report them apart"):
        load_result(*folders)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"final_metric": "good"}'),
        ("summary.json", '{"handshake_bytes": -1}'),
        ("summary.json", "[" * 100_000),
        ("rounds.jsonl", '{"round": 1}\n'),
        ("rounds.jsonl", '{"round": 1, "metric": "x", "up_bytes": 1, "down_bytes": 1}\n'),
        ("rounds.jsonl", '{"round": 1, "metric": 1, "up_bytes": NaN, "down_bytes": 1}\n'),
        ("rounds.jsonl", '{"round": 1, "metric": 1, "up_bytes": 1, "down_bytes": 1, "q": []}\n'),
        ("clients.jsonl", '{"round": 1}\n'),
        ("clients.jsonl", "7\n"),
        ("config.toml", "= 1"),
    ],
)
def test_a_damaged_run_is_refused(tmp_path: Path, file: str, text: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"cannot be read|is not valid TOML"):
        load_result(folder)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"format": 2}, "format: Input should be 1, got 2; run the study again, or mend the file"),
        ({"runs": [{"arm": "a"}]}, "runs.0.seed: Field required"),
        ({"runs": [entry("a", 1, "a", "done")]}, "runs.0.status: Input should be 'finished'"),
        ({"runs": [entry("b", 1, "a")]}, "there is no arm 'b'; there are: a"),
        ({"runs": [entry("a", 1, "a", point=1)]}, "there is no point 1; allowed: 0 to 0"),
        ({"runs": [entry("a", 1, "a")] * 2}, "arm 'a', point 0, seed 1 is there twice"),
        ({"arms": [{"name": "a"}] * 2}, "arms: 'a' is there twice"),
        ({"arms": []}, "arms: List should have at least 1 item"),
        ({"reference": "x"}, "there is no arm 'x'"),
        ({"budgets": [0]}, "budgets.0: Input should be greater than 0"),
        ({"links": [[1]]}, "links.0.1: Field required"),
    ],
)
def test_a_study_that_says_what_cannot_be_is_refused(tmp_path: Path, told, message) -> None:
    write_study(tmp_path, [entry("a", 1, "a", "missing")], **told)
    with pytest.raises(ConfigError, match=message):
        load_result(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_study_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"study\.json"):
        load_result(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"format": 1}), "utf-8")
    with pytest.raises(ConfigError, match="title: Field required"):
        load_result(tmp_path)
