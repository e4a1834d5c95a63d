"""What the command says: plain text, at any width, on any stream; help, version, hints."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fl_darex
from fl_darex.cli import app as command
from fl_darex.commands.messages import plain_console, say, visible
from fl_darex.config import make_config
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart
from fl_darex.observers.display import Display
from fl_darex.observers.phases import Phases
from fl_darex.observers.totals import summary_table

TINY = """
[federation]
clients = 1
rounds = 1
evaluate = "none"

[train]
local-steps = 1
"""
ODD = "o[/x] [bold]b[/] :smile: [link=x]"


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl_darex", *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


# --- plain text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a[/x].toml", "[bold]b[/bold].toml", ":smile:.toml", "[red].toml"]
)
def test_what_looks_like_markup_in_a_path_is_part_of_the_path(name: str, tmp_path: Path) -> None:
    for what in ("run", "check"):
        done = CliRunner().invoke(command, [what, str(tmp_path / name)])
        assert done.exit_code == 2
        assert f"{name}': No such file or directory" in done.output
        assert done.output.count("\n") == 1


def test_a_run_in_a_folder_with_an_odd_name_says_that_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    out = tmp_path / ODD
    arguments = ["run", str(tmp_path / "tiny.toml"), "--engine=local", "--out", str(out)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert f"run folder: {out}\n" in done.output
    phases = ["loading the libraries: ", ", loading the data: ", ", loading the model: "]
    phases += ["\nstarting the clients: ", "round 1: clients"]
    places = [done.output.index(phase) for phase in phases]  # without a terminal: lines
    assert places == sorted(places) and "starting Ray" not in done.output
    assert (out / "summary.json").is_file()
    done = CliRunner().invoke(command, arguments)  # again: the folder is full
    assert done.exit_code == 2 and ODD in done.output


def shown(thing: object) -> str:
    console = plain_console()
    with console.capture() as captured:
        console.print(thing)
    return captured.get()


SUMMARY = {
    "rounds": 2,
    "seconds": 3.0,
    "metric_name": "[/x]:smile:",
    "held_bytes": 0,
    "initial_metric": 0.1,
    "best_metric": 0.5,
    "final_metric": 0.25,
    "test_metric": None,
    "failures": 0,
    **{f"{a}{way}_bytes": 10**6 for a in ("", "dense_") for way in ("up", "down", "total")},
}


def test_a_metric_with_an_odd_name_is_in_the_table_as_it_is() -> None:
    assert "[/x]:smile:, final" in shown(summary_table(SUMMARY))


@pytest.mark.parametrize("terminal", [True, False])
def test_an_odd_name_is_in_the_header_and_in_the_progress_as_it_is(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=terminal,
        _environ={"TERM": "xterm", "COLUMNS": "120"},
        markup=False,
        emoji=False,
        highlight=False,
    )
    config = make_config({"federation.clients": 1})
    start = RunStart(
        config=config, metric_name="[/x]:a:", initial_metric=0.5, parameters=5, model="[/y]"
    )
    report = RoundReport(
        round=1,
        metric=0.25,
        loss=None,
        train_loss=None,
        clients=1,
        failures=0,
        up_bytes=1,
        down_bytes=1,
        dense_up_bytes=1,
        dense_down_bytes=1,
        q=None,
        pull=None,
        seconds=1.0,
    )
    display = Display(console)
    display.started(start)
    display.replied(Entry(round=0, client=0, kind=HANDSHAKE, down_bytes=1))
    display.round_closed(report, [], lambda folder: None)
    time.sleep(0.5)  # the live line is drawn ten times a second
    display.stop()
    assert "[/x]:a: 0.5000" in out.getvalue() and "[/y]" in out.getvalue()
    assert "[/x]:a: 0.2500" in out.getvalue()


def test_control_characters_cannot_give_orders_to_a_terminal() -> None:
    assert visible("a\x1b[31mb\rc\x00\u202e") == "a\\x1b[31mb\\rc\\x00\\u202e"
    assert visible("größe 语 [x]\nnext") == "größe 语 [x]\nnext"
    out = io.StringIO()
    say(Console(file=out, markup=False), "x\x1b]0;title\x07" * 100, "error:", "red")
    assert out.getvalue() == "error: " + "x\\x1b]0;title\\x07" * 100 + "\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_stream_cannot_write_is_no_reason_to_fail(
    encoding: str, tmp_path: Path
) -> None:
    done = process("run", "语.toml", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot read the configuration '\\u8bed.toml': No such file or directory\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fl_darex", "check", "tiny.toml"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
        )
    assert done.returncode == 1
    assert done.stderr == "failed: [Errno 28] No space left on device\n"


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", ["run", "check"])
def test_help_explains_both_arguments_with_an_example_on_one_line(name: str, columns: int) -> None:
    done = CliRunner().invoke(command, [name, "--help"], env={"COLUMNS": str(columns)})
    said = " ".join(done.output.split())
    config = "[CONFIG]" if name == "run" else "CONFIG"  # --resume takes its place
    assert f"{name} [OPTIONS] {config} [OVERRIDES]..." in said
    assert "CONFIG is a TOML file with the settings of a run" in said
    assert "OVERRIDES: settings to change for this time, each as SECTION.KEY=VALUE" in said
    example = f"fl-darex {name} configs/quickstart.toml compress.p=0.999 federation.rounds=5"
    assert example in [line.strip() for line in done.output.splitlines()]
    assert "compress.columns (structured: fraction of input columns that is kept)" in said
    assert "\\[" not in done.output  # an escape of markup that nobody takes back


def test_the_example_of_the_help_is_a_good_one() -> None:
    from fl_darex.commands.settings import ABOUT, Engine, read_settings

    (line,) = [line for line in ABOUT.splitlines() if "fl-darex" in line]
    _, _, config, *overrides = line.split()
    root = Path(__file__).resolve().parent.parent
    made, remarks = read_settings(root / config, overrides, Engine.ray)
    assert (made.compress.p, made.federation.rounds, remarks) == (0.999, 5, [])


def test_a_mistyped_command_or_option_gets_one_hint() -> None:
    for arguments, hint in ((["rnu"], "'run'"), (["run", "x", "--engin=ray"], "'--engine'")):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 2
        assert done.output.count(f"Did you mean {hint}?") == 1


def test_version_is_one_line_from_the_script_and_from_python_m(tmp_path: Path) -> None:
    done = process("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fl-darex {fl_darex.__version__}\n"
    assert CliRunner().invoke(command, ["--version"]).output == done.stdout


def test_no_command_at_all_shows_the_commands(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [])
    assert "check" in done.output and "run" in done.output


def test_phases_that_come_to_nothing_leave_no_line_and_others_one_for_each_end() -> None:
    console = plain_console()
    with console.capture() as captured:
        phases = Phases(console)
        phases.end()
        phases.begin("one")
        phases.begin("two")
        phases.stop()
        phases.end()
    assert captured.get() == ""
    with console.capture() as captured:
        phases.begin("one")
        phases.begin("two")
        phases.end()
        phases.end()
    assert re.fullmatch(r"one: \d+\.\d s, two: \d+\.\d s\n", captured.get())
