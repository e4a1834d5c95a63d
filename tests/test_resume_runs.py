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
    for _ in range(kills):
        until = time.monotonic() + 120
        goal = draw.randrange(closed(out), count)  # it may be there already: a start is killed, too
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


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_that_is_killed_anywhere_and_resumed_ends_with_the_same_bits_and_logs(
    arm: str, commands: Commands, cwd: Path
) -> None:
    expected = whole(commands, cwd, ARMS[arm], 4)
    found = killed(commands, cwd, ARMS[arm], 4, 2)
    assert summary(found)["resumed"] >= 1
    check(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_ten_kills_at_random_points_change_nothing(arm: str, commands: Commands, cwd: Path) -> None:
    expected = whole(commands, cwd, ARMS[arm], 15)
    found = killed(commands, cwd, ARMS[arm], 15, 10)
    assert summary(found)["resumed"] >= 5
    check(found, expected)
