"""``fl-darex run``, killed and resumed: the same model, the same logs, and what is refused."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Commands
from test_cli import COMMAND, fl_darex

ROOT = Path(__file__).resolve().parent.parent
SMALL = """
[task]
eval-examples = 20

[federation]
clients = 3
clients-per-round = 2
evaluate-every = 3

[train]
local-steps = 1
batch-size = 8
"""
ARMS = {
    "dare with AdamR": [],
    "server downlink": ["compress.downlink=server", "server.average=uniform"],
    "FedAdam": ["server.strategy=fedadam", "server.lr=0.01"],
    "a residual": ["compress.method=topk:TopK", "compress.fraction=0.05"],
}


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(ROOT / "examples" / "extend") as found:
        yield found


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl, without the time that they took."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def closed(folder: Path) -> int:
    path = folder / "rounds.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def whole(commands: Commands, cwd: Path, arm: list[str], count: int) -> Path:
    arguments = ["run", "small.toml", *arm, f"federation.rounds={count}", "--engine=local"]
    process = commands.start([*arguments, "--out=whole"], cwd)
    assert commands.wait(process) == 0, (cwd / "log").read_text()
    return cwd / "whole"


def killed(commands: Commands, cwd: Path, arm: list[str], count: int, kills: int) -> Path:
    """Return the folder of a run that was killed so often, anywhere, and then finished."""
    draw, out = random.Random(f"{arm} {kills}"), cwd / "out"
    arguments = ["run", "small.toml", *arm, f"federation.rounds={count}", "--engine=local"]
    process = commands.start([*arguments, "--out=out"], cwd)
    for number in range(1, kills + 1):
        until = time.monotonic() + 120
        goal = number * count // (kills + 1)  # it may be there already: a start is killed, too
        while closed(out) < goal and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        if commands.kill(process) == 0:
            break  # it was faster
        process = commands.start(["run", "--resume", "out"], cwd)
    assert commands.wait(process) == 0, (cwd / "log").read_text()
    return out


def check(found: Path, expected: Path) -> None:
    assert weights(found) == weights(expected)
    assert rounds(found) == rounds(expected)
    assert (found / "clients.jsonl").read_text() == (expected / "clients.jsonl").read_text()
    unlike = {"seconds", "resumed"}
    ends = [
        {key: value for key, value in summary(one).items() if key not in unlike}
        for one in (found, expected)
    ]
    assert ends[0] == ends[1] and ends[0]["status"] == "finished"
    assert (found / "config.toml").read_text() == (expected / "config.toml").read_text()


@pytest.mark.parametrize(
    "arm",
    [
        "dare with AdamR",
        "a residual",
        *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("server downlink", "FedAdam")),
    ],
)
def test_a_run_that_is_killed_anywhere_and_resumed_ends_with_the_same_bits_and_logs(
    arm: str, commands: Commands, cwd: Path
) -> None:
    expected = whole(commands, cwd, ARMS[arm], 4)
    found = killed(commands, cwd, ARMS[arm], 4, 1)
    assert summary(found)["resumed"] >= 1
    check(found, expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arm", ARMS)
def test_ten_kills_at_random_points_change_nothing(arm: str, commands: Commands, cwd: Path) -> None:
    expected = whole(commands, cwd, ARMS[arm], 15)
    found = killed(commands, cwd, ARMS[arm], 15, 10)
    assert summary(found)["resumed"] >= 5  # others were killed before they had begun
    check(found, expected)


def stopped(commands: Commands, cwd: Path, *settings: str, after: int = 1) -> Path:
    """Return the folder of a run of five rounds that was killed when some were over."""
    arguments = ["run", "small.toml", "federation.rounds=5", *settings, "--engine=local"]
    process = commands.start([*arguments, "--out=out"], cwd)
    path, until = cwd / "out" / "checkpoint" / "state.darex", time.monotonic() + 120
    while not (path.exists() and closed(cwd / "out") > after) and time.monotonic() < until:
        time.sleep(0.01)
    assert commands.kill(process) == -signal.SIGKILL, (cwd / "log").read_text()
    return cwd / "out"


def said(commands: Commands, cwd: Path, *arguments: str) -> tuple[int, str]:
    """What a command comes to: its exit code, and its last line."""
    (cwd / "log").unlink(missing_ok=True)
    code = commands.wait(commands.start(["run", *arguments], cwd))
    return code, (cwd / "log").read_text().strip().splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


REFUSED = {
    ("--out=other",): "error: --resume goes on in its own folder, 'out'; leave out --out",
    ("compress.p=0.9",): "error: compress.p is part of what the run is and cannot change when it",
    ("resources.num-gpus=1",): "error: resources.num-gpus is part of what the run is",
    ("small.toml",): "error: --resume takes its configuration from 'out/config.toml', not from 'sm",
    ("federation.rounds=1",): "error: federation.rounds = 1, and round 1 is over; set it higher",
    ("federation.checkpoint-every=0",): "error: the run in 'out' keeps no checkpoints (federation.",
    ("resources.actors=2",): "error: resources.actors = 2 has no effect in this run: it is for the",
    ("compress.pp=1",): "error: unknown key 'compress.pp'; did you mean 'compress.p'?",
}


def test_what_would_make_it_another_run_is_refused_and_changes_nothing(
    commands: Commands, cwd: Path
) -> None:
    out = stopped(commands, cwd, after=0)
    before = contents(out)
    for words, line in REFUSED.items():
        code, last = said(commands, cwd, "--resume", "out", *words)
        assert (code, last[: len(line)]) == (2, line)
    state = out / "checkpoint" / "state.darex"
    state.write_bytes(state.read_bytes()[:-9])
    code, last = said(commands, cwd, "--resume", "out")
    assert code == 2 and "state.darex' is damaged (its checksum is wrong); remove it" in last
    state.write_bytes(before["".join([str(state)])])
    (out / "config.toml").write_text(
        (out / "config.toml").read_text().replace("lr = 0.001\n", "lr = 0.002\n", 1)
    )
    code, last = said(commands, cwd, "--resume", "out")
    assert code == 2 and "is of another run: train.lr is 0.002, was 0.001; go on with" in last
    assert contents(out) == before | {str(out / "config.toml"): (out / "config.toml").read_bytes()}
    assert summary(out)["status"] == "running"  # as the killed process left it


def test_a_folder_without_a_run_or_with_one_that_goes_on_is_refused(
    commands: Commands, cwd: Path
) -> None:
    code, last = said(commands, cwd, "--resume", "small.toml")
    assert (code, last) == (2, "error: 'small.toml' is no run folder: it has no config.toml")
    code, last = said(commands, cwd)
    assert (code, last) == (2, "error: name a CONFIG.toml, or --resume with a run folder")
    arguments = ["run", "small.toml", "federation.rounds=500", "--engine=local", "--out=out"]
    process = commands.start(arguments, cwd)
    try:
        while not closed(cwd / "out"):
            time.sleep(0.01)
        code, last = said(commands, cwd, "--resume", "out")
        assert (code, last) == (2, "error: the run in 'out' still goes on, in another process")
    finally:
        commands.kill(process)


def test_a_finished_run_has_nothing_left_to_do_unless_it_is_made_longer(
    commands: Commands, cwd: Path
) -> None:
    out = whole(commands, cwd, [], 2)
    before = contents(out)
    code, last = said(commands, cwd, "--resume", "whole")
    assert (code, last) == (0, "the run in 'whole' has finished; nothing is left to do")
    code, last = said(commands, cwd, "--resume", "whole", "federation.rounds=1")
    assert code == 2 and "has finished, after 2 rounds; for a longer one set federation.ro" in last
    assert contents(out) == before
    assert said(commands, cwd, "--resume", "whole", "federation.rounds=4")[0] == 0
    longer, out = out.rename(cwd / "longer"), whole(commands, cwd, [], 4)
    assert weights(longer) == weights(out) and len(rounds(longer)) == 4
    assert (longer / "config.toml").read_text() == (out / "config.toml").read_text()


def test_a_run_that_ended_for_want_of_replies_goes_on_when_fewer_are_enough(
    commands: Commands, cwd: Path
) -> None:
    out = stopped(commands, cwd)
    assert said(commands, cwd, "--resume", "out", "federation.min-replies=1")[0] == 0
    assert summary(out)["status"] == "finished"
    assert "min-replies = 1" in (out / "config.toml").read_text()


def test_more_rounds_are_refused_where_the_learning_rate_depends_on_them(
    commands: Commands, cwd: Path
) -> None:
    stopped(commands, cwd, "train.schedule=linear")
    code, last = said(commands, cwd, "--resume", "out", "federation.rounds=9")
    assert code == 2
    assert "federation.rounds cannot change when this run goes on: the learning rate of" in last
    assert said(commands, cwd, "--resume", "out")[0] == 0


def test_a_run_without_a_checkpoint_begins_anew_in_its_folder_and_says_so(
    commands: Commands, cwd: Path
) -> None:
    expected = whole(commands, cwd, [], 2)
    process = commands.start(
        ["run", "small.toml", "federation.rounds=2", "--engine=local", "--out=out"], cwd
    )
    while not (cwd / "out" / "summary.json").exists():
        time.sleep(0.001)
    commands.kill(process)
    (cwd / "out" / "rounds.jsonl").write_text('{"round": 1}\n')
    assert said(commands, cwd, "--resume", "out")[0] == 0
    line = "note: the run in 'out' has no checkpoint yet and begins anew"
    assert line in (cwd / "log").read_text().splitlines()
    check(cwd / "out", expected)


def test_an_interrupted_run_says_how_to_go_on_and_its_time_adds_up(
    commands: Commands, cwd: Path
) -> None:
    import os

    process = commands.start(
        ["run", "small.toml", "federation.rounds=500", "--engine=local", "--out=out"], cwd
    )
    while closed(cwd / "out") < 3:
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    assert commands.wait(process) == 130
    assert "stopped; what was done so far is in out; fl-darex run --resume out goes on" in (
        (cwd / "log").read_text()
    )
    before = summary(cwd / "out")
    assert before["status"] == "interrupted" and before["resumed"] == 0
    assert (
        said(commands, cwd, "--resume", "out", f"federation.rounds={closed(cwd / 'out')}")[0] == 0
    )
    after = summary(cwd / "out")
    assert (after["status"], after["reason"], after["resumed"]) == ("finished", None, 1)
    assert after["seconds"] > sum(row["seconds"] for row in map(json.loads, open_lines(cwd)))


def open_lines(cwd: Path) -> list[str]:
    return (cwd / "out" / "rounds.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_a_killed_run_on_other_engines_goes_on_there_or_here(engine: str, cwd: Path) -> None:
    arguments = ["run", "small.toml", "federation.rounds=6"]
    assert fl_darex(*arguments, "--engine=local", "--out=whole", cwd=cwd).returncode == 0
    process = subprocess.Popen([*COMMAND, *arguments, f"--engine={engine}", "--out=out"], cwd=cwd)
    try:
        until = time.monotonic() + 200
        while closed(cwd / "out") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = fl_darex("run", "--resume", "out", cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr
    found = summary(cwd / "out")
    assert (found["engine"], found["status"], found["resumed"]) == (engine, "finished", 1)
    assert weights(cwd / "out") == weights(cwd / "whole")
    assert [row["metric"] for row in rounds(cwd / "out")] == [
        row["metric"] for row in rounds(cwd / "whole")
    ]
