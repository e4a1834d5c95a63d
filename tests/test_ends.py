"""How a run's command ends, as a process: its status, its exit code, what a person reads.

Rounds here come from a script, so that a signal meets the command where it should.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import typer
from rich.console import Console
from fl_darex.commands.ends import ended
from fl_darex.config import make_config
from fl_darex.errors import ConfigError, DarexError
from fl_darex.flower.ledger import Entry
from fl_darex.observers import RoundReport, RunStart
from fl_darex.observers.run_folder import RunFolder

config = make_config({"federation.rounds": 2})
start = RunStart(config=config, metric_name="accuracy", initial_metric=0.5, parameters=3)
entry = Entry(round=1, client=0, kind="train", down_bytes=1, up_bytes=1)
folder = RunFolder(Path(sys.argv[1]))

def save(place):
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"m" * int(os.environ.get("SIZE", 9)))

def close(number, metric=0.5):
    numbers = dict(clients=1, failures=0, up_bytes=1, down_bytes=1, dense_up_bytes=2)
    report = RoundReport(
        round=number, metric=metric, loss=metric, train_loss=None, dense_down_bytes=2, q=None,
        pull=None, seconds=0.0, **numbers,
    )
    folder.round_closed(report, [entry], save)

def wait():
    print("waiting", flush=True)
    time.sleep(60)

try:
    with ended(folder, Console()):
        with folder:
            exec(os.environ["BEFORE"])
            folder.reserve(config)
            exec(os.environ["SETUP"])
            folder.started(start)
            exec(os.environ["ROUNDS"])
        exec(os.environ["AFTER"])
    sys.exit(0)  # as Typer does
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def heard() -> None:
    """Hear SIGHUP, also where nohup started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script with what it does in each phase; the folder is ``out``."""
    begun: list[subprocess.Popen[str]] = []

    def begin(prepare: Any = None, **phases: str) -> subprocess.Popen[str]:
        done = {"BEFORE": "", "SETUP": "", "ROUNDS": "close(1); close(2)", "AFTER": ""}
        done |= {"COLUMNS": "200", "NO_COLOR": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "out"],
            cwd=tmp_path,
            env=os.environ | done | {name.upper(): text for name, text in phases.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare or heard,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def summary(tmp_path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (tmp_path / "out" / "summary.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def after(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    printed, problems = process.communicate(timeout=60)
    return process.returncode, printed, problems


STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PHASES = {
    "in set-up": ({"setup": "wait()"}, "interrupted", 0),
    "in a round": ({"rounds": "close(1); wait()"}, "interrupted", 1),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_signal_leaves_an_interrupted_run_and_130(
    number: signal.Signals, phase: str, begin: Any, tmp_path: Path
) -> None:
    phases, status, rounds = PHASES[phase]
    process = begin(**phases)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    code, printed, problems = after(process)
    assert (code, problems) == (130, "")
    assert printed == "stopped; what was done so far is in out\n"
    found = summary(tmp_path)
    assert (found["status"], found["reason"], found["rounds"]) == (status, number.name, rounds)
    assert len((tmp_path / "out" / "rounds.jsonl").read_text().splitlines()) == rounds


def test_a_signal_before_the_folder_is_taken_names_none(begin: Any, tmp_path: Path) -> None:
    process = begin(before="wait()")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    assert after(process) == (130, "stopped; nothing began\n", "")
    assert not (tmp_path / "out").exists()


def test_a_signal_after_the_last_round_does_not_undo_the_run(begin: Any, tmp_path: Path) -> None:
    process = begin(after="wait()")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    assert after(process) == (0, "the run had finished; run folder: out\n", "")
    assert summary(tmp_path)["status"] == "finished"
    assert (tmp_path / "out" / "model").is_dir()


def test_a_signal_between_the_model_and_the_summary_does_not_undo_the_run_either(
    begin: Any, tmp_path: Path
) -> None:
    between = "close(1); folder._save(save); os.kill(os.getpid(), signal.SIGTERM); wait()"
    code, printed, problems = after(begin(rounds=between))
    assert (code, problems) == (0, "")
    assert printed.splitlines()[-1] == "the run had finished; run folder: out"
    assert summary(tmp_path)["status"] == "finished"


def test_a_thread_that_goes_on_does_not_keep_an_interrupted_command(begin: Any) -> None:
    busy = "import threading; threading.Thread(target=time.sleep, args=[600]).start(); wait()"
    process = begin(rounds=busy)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    assert after(process) == (130, "stopped; what was done so far is in out\n", "")


def test_many_signals_at_once_are_one_end(begin: Any, tmp_path: Path) -> None:
    process = begin(rounds="close(1); wait()")
    assert process.stdout.readline() == "waiting\n"
    for number in STOPS * 20:
        process.send_signal(number)
        time.sleep(0.002)
    assert after(process)[0] == 130
    assert summary(tmp_path)["status"] == "interrupted"


def test_a_signal_that_is_ignored_as_by_nohup_stays_ignored(begin: Any, tmp_path: Path) -> None:
    process = begin(
        lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        rounds="os.kill(os.getpid(), signal.SIGHUP); close(1); close(2)",
    )
    assert after(process) == (0, "", "")
    assert summary(tmp_path)["status"] == "finished"


def test_a_library_that_raises_an_interrupt_of_its_own_does_not_hide_the_signals_name(
    begin: Any, tmp_path: Path
) -> None:
    rounds = """
try:
    os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)
except KeyboardInterrupt:
    raise KeyboardInterrupt from None
"""
    code, _, problems = after(begin(rounds=rounds))
    assert (code, problems) == (130, "")
    found = summary(tmp_path)
    assert (found["status"], found["reason"]) == ("interrupted", "SIGTERM")


ERRORS = {
    "one of ours": (
        "raise DarexError('no reply of round 1\\ncounted')",
        *("no reply of round 1 counted", "failed: no reply of round 1\ncounted\n", 1),
    ),
    "a bug": (
        "[][1]",
        *(
            "IndexError: list index out of range",
            "failed: IndexError: list index out of range; all of it is in out/traceback.txt\n",
            1,
        ),
    ),
    "a bad setting that comes to light late": (
        "raise ConfigError('train.x = 3 [/b] is not allowed')",
        *("train.x = 3 [/b] is not allowed", "error: train.x = 3 [/b] is not allowed\n", 2),
    ),
    "an app that leaves": (
        "sys.exit(0)",
        *("SystemExit: 0", "failed: SystemExit: 0; all of it is in out/traceback.txt\n", 1),
    ),
    "rounds that stay away": (
        "pass",
        *(
            "the run ended after 1 of 2 rounds",
            "failed: the run ended after 1 of 2 rounds\n",
            1,
        ),
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_a_failed_run_with_its_reason(error: str, begin: Any, tmp_path: Path) -> None:
    raises, reason, said, code = ERRORS[error]
    assert after(begin(rounds=f"close(1); {raises}")) == (code, "", said)
    found = summary(tmp_path)
    assert (found["status"], found["reason"], found["rounds"]) == ("failed", reason, 1)
    whole = (tmp_path / "out" / "traceback.txt").read_text()
    assert whole.startswith("Traceback") or error == "rounds that stay away"


def test_a_run_that_fails_after_its_last_round_is_no_finished_one(
    begin: Any, tmp_path: Path
) -> None:
    process = begin(rounds="close(1); close(2); raise DarexError('no reply counted')")
    assert after(process) == (1, "", "failed: no reply counted\n")
    found = summary(tmp_path)
    assert (found["status"], found["reason"]) == ("failed", "no reply counted")


def test_a_bad_setting_that_comes_to_light_in_set_up_leaves_nothing(
    begin: Any, tmp_path: Path
) -> None:
    process = begin(setup="raise ConfigError('task.model = 3')")
    assert after(process) == (2, "", "error: task.model = 3\n")
    assert not list(tmp_path.iterdir())


def test_another_error_in_set_up_leaves_a_failed_run(begin: Any, tmp_path: Path) -> None:
    process = begin(setup="raise DarexError('Ray cannot be started')")
    assert after(process) == (1, "", "failed: Ray cannot be started\n")
    found = summary(tmp_path)
    assert (found["status"], found["rounds"], found["metric_name"]) == ("failed", 0, None)


def test_what_is_no_number_is_null_in_all_files(begin: Any, tmp_path: Path) -> None:
    nan = "close(1, float('nan')); close(2, float('-inf'))"
    assert after(begin(rounds=nan)) == (0, "", "")
    found = summary(tmp_path)
    assert (found["final_metric"], found["best_metric"]) == (None, None)
    text = (tmp_path / "out" / "rounds.jsonl").read_text()
    assert [json.loads(line)["metric"] for line in text.splitlines()] == [None, None]
    assert "NaN" not in text and "Infinity" not in text


def test_a_model_that_does_not_fit_on_the_disk_leaves_all_the_rest(
    begin: Any, tmp_path: Path
) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, printed, problems = after(begin(small, size="200000"))
    assert (code, printed) == (1, "")
    assert problems.startswith("failed: the model cannot be saved in 'out': OSError: ")
    assert problems.endswith("; what was written before is there\n")
    found = summary(tmp_path)
    assert (found["status"], found["rounds"], found["final_metric"]) == ("failed", 2, 0.5)
    assert problems == f"failed: {found['reason']}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.toml", "rounds.jsonl", "clients.jsonl", "summary.json", "traceback.txt")
    }


def test_a_full_log_has_no_line_in_part(begin: Any, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, 2_500))

    process = begin(small, rounds="[close(number) for number in range(3, 60)]")
    code, _, problems = after(process)
    assert code == 1
    assert problems.startswith("failed: cannot write to 'out': File too large")
    lines = (tmp_path / "out" / "rounds.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 3 and lines[-1].endswith("\n")
    found = summary(tmp_path)
    assert (found["status"], found["rounds"]) == ("failed", len(rows))
