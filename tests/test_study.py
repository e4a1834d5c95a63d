"""``fl-darex study``: it chooses, runs, goes on after any stop, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Commands
from test_cli import fl_darex
from test_resume_runs import rounds

ROOT = Path(__file__).resolve().parent.parent
TINY = """
seeds = [1, 2]
reference = "dense"

[all]
task.eval-examples = 20
federation.clients = 2
federation.rounds = 3
train.local-steps = 1
train.batch-size = 8

[tune]
examples = 20
federation.rounds = 1
train.lr = [1e-4, 1e-3]

[arms.dense]
compress.method = "dense"

[arms.dare]
compress.p = 0.9
"""
RUNS = [f"runs/{arm}/seed-{seed}" for seed in (1, 2) for arm in ("dense", "dare")]
TRIALS = [f"tuning/{arm}/lr={lr}" for arm in ("dense", "dare") for lr in ("0.0001", "0.001")]


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(ROOT / "examples" / "extend") as found:
        yield found


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def start(commands: Commands, cwd: Path, *arguments: str) -> int:
    (cwd / "log").unlink(missing_ok=True)
    engine = [] if any("--engine" in one for one in arguments) else ["--engine=local"]
    return commands.start(["study", "tiny.toml", "--out=out", *engine, *arguments], cwd)


def said(commands: Commands, cwd: Path, *arguments: str) -> tuple[int, str]:
    code = commands.wait(start(commands, cwd, *arguments))
    return code, (cwd / "log").read_text()


def record(cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cwd / "out" / "study.json").read_text())
    return found


def results(cwd: Path) -> dict[str, Any]:
    """What a study has found, without the times that it took."""
    found = record(cwd)
    del found["command"]
    return {"study": found} | {name: rounds(cwd / "out" / name) for name in (*RUNS, *TRIALS)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a study has run to its end, left alone."""
    cwd = tmp_path_factory.mktemp("study")
    (cwd / "tiny.toml").write_text(TINY)
    code, log = said(commands, cwd)
    assert code == 0, log
    return cwd


def test_every_trial_and_run_is_there_and_the_record_says_so(whole: Path) -> None:
    found = record(whole)
    assert (found["title"], found["reference"], found["seeds"]) == ("tiny", "dense", [1, 2])
    assert found["metric_name"] == "accuracy" and found["grid"] == [{}]
    assert [one["folder"] for one in found["runs"]] == RUNS
    assert {one["status"] for one in found["runs"]} == {"finished"}
    assert [one["folder"] for one in found["tuning"]] == TRIALS
    for place, arm in enumerate(("dense", "dare")):
        tried = found["tuning"][2 * place : 2 * place + 2]
        best = max(tried, key=lambda one: one["metric"])
        assert [one["chosen"] for one in tried] == [one is best for one in tried]
        assert found["arms"][place]["chosen"] == [best["settings"]]
        for seed in (1, 2):
            text = (whole / "out" / f"runs/{arm}/seed-{seed}" / "config.toml").read_text()
            assert f"lr = {best['settings']['train.lr']}" in text and f"seed = {seed}" in text
    log = (whole / "log").read_text()
    assert "[4/4] dare, seed 2: accuracy 0." in log and "dare reaches 99 % of the final" in log
    assert log.endswith("study: out; fl-darex report out writes its page\n")
    kept = {path.name for path in (whole / "out" / RUNS[0]).iterdir()}
    assert kept == {"config.toml", "rounds.jsonl", "clients.jsonl", "summary.json"}


def test_the_same_command_again_does_nothing(commands: Commands, whole: Path) -> None:
    before = contents(whole / "out" / "runs")
    code, log = said(commands, whole)
    assert code == 0 and log.count("4 of 4 are done already") == 2
    assert contents(whole / "out" / "runs") == before


def test_its_page_has_a_row_for_each_arm_and_says_what_was_tried(
    whole: Path, tmp_path: Path
) -> None:
    done = fl_darex("report", str(whole / "out"), "--out=page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    for words in ("dense", "dare", "train.lr", "0.0001"):
        assert words in page


def test_runs_of_other_settings_or_other_code_are_refused(commands: Commands, whole: Path) -> None:
    before = contents(whole / "out")
    code, log = said(commands, whole, "train.batch-size=9")
    assert code == 2
    assert "holds a run with other settings (train.batch-size was 8, is 9); remove it" in log
    assert contents(whole / "out") == before
    path = whole / "out" / RUNS[3] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"versions": {"code": "abc"}}))
    try:
        code, log = said(commands, whole)
        assert code == 2 and f"1 runs are of other code, such as 'out/{RUNS[3]}'; remove" in log
        code, log = said(commands, whole, "--any-code")
        assert code == 0 and log.count("4 of 4 are done already") == 2
    finally:
        path.write_bytes(before[str(path)])


def test_a_study_killed_three_times_finds_what_one_left_alone_does(
    commands: Commands, cwd: Path, whole: Path
) -> None:
    draw = random.Random(3)
    for number in range(1, 4):
        process, until = start(commands, cwd), time.monotonic() + 120
        while len(list(cwd.glob("out/*/*/*/rounds.jsonl"))) < 2 * number:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        assert commands.kill(process) == -signal.SIGKILL
    assert said(commands, cwd)[0] == 0
    assert results(cwd) == results(whole)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_a_record(commands: Commands, cwd: Path) -> None:
    process, until = start(commands, cwd), time.monotonic() + 120
    while not list(cwd.glob("out/tuning/*/*/rounds.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process, signal.SIGINT)
    assert commands.wait(process) == 130
    last = (cwd / "log").read_text().splitlines()[-1]
    assert last == "stopped; what is done is in out; the same command goes on"
    assert {one["status"] for one in record(cwd)["runs"]} == {"missing"}
    assert said(commands, cwd)[0] == 0


def test_a_run_that_fails_costs_itself_and_the_exit_code(commands: Commands, cwd: Path) -> None:
    text = TINY.replace("[tune]\n", "[ignored]\n").partition("[ignored]")[0]
    arms = '[arms.dense]\ncompress.method = "dense"\n[arms.broken]\ntask.model = "nowhere/at-all"\n'
    (cwd / "tiny.toml").write_text(text + arms)
    code, log = said(commands, cwd)
    assert code == 1 and "broken, seed 1: failed: task.model = 'nowhere/at-all'" in log
    by_status = {one["status"]: one for one in record(cwd)["runs"]}
    assert set(by_status) == {"finished", "failed"}
    assert by_status["failed"]["arm"] == "broken" and "nowhere" in by_status["failed"]["reason"]


def test_a_second_process_is_kept_out(commands: Commands, cwd: Path) -> None:
    process, until = start(commands, cwd), time.monotonic() + 120
    while not (cwd / "out" / "study.json").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    code, log = said(commands, cwd)
    assert code == 2 and "the study in 'out' goes on in another process" in log
    commands.kill(process)


def test_a_plan_runs_nothing(commands: Commands, cwd: Path) -> None:
    code, log = said(commands, cwd, "--plan")
    assert code == 0 and "tiny: 4 trials, then 4 runs" in log
    assert "dare: compress.p = 0.9; train.lr from [0.0001, 0.001]" in log
    assert not (cwd / "out").exists()


def test_flowers_engine_is_for_single_runs(commands: Commands, cwd: Path) -> None:
    code, log = said(commands, cwd, "--engine=flower")
    assert code == 2 and "a study takes ray or local" in log


@pytest.mark.slow
def test_a_run_with_several_values_is_a_study_that_the_same_command_goes_on_with(
    commands: Commands, cwd: Path
) -> None:
    (cwd / "small.toml").write_text(TINY.partition("[all]")[2].partition("[tune]")[0])
    arguments = ["run", "small.toml", "compress.p=.5,.9", "--engine=local", "--out=out"]
    assert commands.wait(commands.start(arguments, cwd)) == 0, (cwd / "log").read_text()
    assert [one["folder"] for one in record(cwd)["runs"]] == [
        "runs/p=0.5/seed-0",
        "runs/p=0.9/seed-0",
    ]
    assert (cwd / "out" / "runs/p=0.9/seed-0" / "model" / "model.safetensors").is_file()
    assert commands.wait(commands.start(arguments, cwd)) == 0
    assert "2 of 2 are done already" in (cwd / "log").read_text()
    assert commands.wait(commands.start([*arguments, "--track=tensorboard"], cwd)) == 2
    assert "several values of a setting make a study, which takes no" in (cwd / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_side_by_side_on_ray_killed_and_resumed_find_the_same(
    commands: Commands, cwd: Path, whole: Path
) -> None:
    process, until = start(commands, cwd, "--engine=ray"), time.monotonic() + 120
    while len(list(cwd.glob("out/*/*/*/rounds.jsonl"))) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert commands.kill(process) == -signal.SIGKILL
    assert said(commands, cwd, "--engine=ray")[0] == 0
    assert results(cwd) == results(whole)
