"""Whose a run folder is, and what an observer's faults cost."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.files.lines import append_line, strict_json
from fl_darex.files.reservation import give_back, reserve
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import make_app

CONFIG = make_config({"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 1})

AT_ONCE = """
import sys, time
from pathlib import Path
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.observers.run_folder import RunFolder
folder = RunFolder(Path("runs/one"), numbered=sys.argv[1] == "numbered")
config = make_config({"federation.seed": int(sys.argv[2])})
print("ready", flush=True)
sys.stdin.readline()
try:
    folder.reserve(config)
    print(folder.path.name)
except ConfigError as error:
    print("taken" if "holds a run already" in str(error) else error)
"""


def at_once(how: str, count: int, cwd: Path) -> list[str]:
    """What processes say that take a folder in the same moment."""
    command = [sys.executable, "-c", AT_ONCE, how]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    begun = [subprocess.Popen([*command, str(n)], cwd=cwd, **pipes) for n in range(count)]
    for process in begun:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in begun:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sorted(process.communicate(timeout=60)[0].strip() for process in begun)


def test_runs_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    assert at_once("numbered", 4, tmp_path) == ["one", "one-2", "one-3", "one-4"]
    seeds = [(tmp_path / "runs" / name / "config.toml").read_text() for name in ("one", "one-4")]
    assert seeds[0] != seeds[1]


def test_of_runs_with_one_out_all_but_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)  # an empty folder may be used
    assert at_once("named", 4, tmp_path) == ["one", "taken", "taken", "taken"]


def test_a_folder_with_a_run_or_anything_else_is_refused_with_the_way_out(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").reserve(CONFIG)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for name, said in (
        ("run", "holds a run already; choose another name"),
        ("file", "is not an empty folder; choose another name"),
        ("full", "is not an empty folder; choose another name"),
    ):
        with pytest.raises(ConfigError, match=said):
            RunFolder(tmp_path / name).reserve(CONFIG)
    assert (tmp_path / "full" / "mine").exists()


def test_a_folder_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/nobody/run"), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"cannot write to .*name a folder"):
            RunFolder(place).reserve(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_made_is_given_back_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "a" / "b" / "mine"
    made = reserve(mine, "m", "text")
    assert made == [mine, mine.parent, mine.parent.parent]
    assert (mine / "m").read_text() == "text"
    assert reserve(tmp_path / "a" / "other", "m", "") == [tmp_path / "a" / "other"]
    give_back(mine, ["m", "not there"], made)
    assert not mine.parent.exists() and (tmp_path / "a" / "other" / "m").exists()


def test_json_is_strict_at_every_depth() -> None:
    value = {"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf, "d": None}, "e": 2**63}
    assert strict_json(value) == (
        '{"a": [null, [null, 1.5]], "b": {"c": null, "d": null}, "e": 9223372036854775808}'
    )


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or write(file, data))
    append_line(tmp_path / "log", '{"größe": 1}')
    append_line(tmp_path / "log", "2")
    assert written == ['{"größe": 1}\n'.encode(), b"2\n"]
    assert (tmp_path / "log").read_bytes() == b"".join(written)


def test_a_line_that_fits_in_part_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_line(tmp_path / "log", "whole")
    write = os.write

    def nearly_full(file: int, data: bytes) -> int:
        if len(data) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:4])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="No space left"):
        append_line(tmp_path / "log", "too long")
    assert (tmp_path / "log").read_text() == "whole\n"


class Broken:
    """An observer that fails in every hook, or in one."""

    def __init__(self, *but: str) -> None:
        self.told: list[str] = []
        self.but = but

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hook(*what: object) -> None:
            self.told.append(name)
            if name not in self.but:
                raise OSError(f"{name} is broken")

        return hook


def test_a_broken_observer_costs_a_line_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, halting = Broken(), Broken("started", "replied")
    observers: list[Any] = [broken, RunFolder(tmp_path / "out"), object(), halting]
    logging.getLogger("flwr").propagate = True
    with caplog.at_level("WARNING", "flwr"):
        simulate_in_process(make_app(CONFIG, observers), app, clients=2)
    folder = observers[1]
    assert folder.summary()["status"] == folder.status == "finished"
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    said = [record.message for record in caplog.records if "observer" in record.message]
    assert len(said) == 3 and all("the run goes on" in line for line in said)
    assert "Broken failed" in said[0] and "started is broken" in said[0]
    # It is told everything all the same.
    assert broken.told.count("round_closed") == 2 and broken.told.count("started") == 1
    assert halting.told == broken.told


def test_without_its_folder_a_run_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder"), folder:
        simulate_in_process(make_app(CONFIG, [folder]), app, clients=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert json.dumps(folder.summary()) == "{}"
