"""What a person sees while a run goes on: three lines on a terminal, elsewhere a line a round."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federations import ask
from flwr.app import Context, Message, RecordDict
from rich.console import Console

from fl_darex.config import make_config
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart
from fl_darex.observers.display import Display
from fl_darex.observers.live import Workload
from fl_darex.observers.numbers import Numbers, resident, size, span
from fl_darex.simulation import InProcessGrid

CONFIG = make_config({"federation.clients": 4, "federation.rounds": 2})
START = RunStart(config=CONFIG, metric_name="accuracy", initial_metric=0.5, parameters=3)
ANSI = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


def report(number: int, metric: float = 0.25) -> RoundReport:
    fields: dict[str, Any] = dict(clients=4, failures=1, up_bytes=2_000_000, down_bytes=3_000_000)
    fields |= dict(dense_up_bytes=1, dense_down_bytes=1, loss=None, train_loss=None)
    return RoundReport(round=number, metric=metric, q=None, pull=None, seconds=1.5, **fields)


def entry(kind: str = "train", failed: bool = False) -> Entry:
    return Entry(1, 0, kind, down_bytes=3_000_000, up_bytes=2_000_000, failed=failed)


class Engine:
    """Says that clients are at work."""

    running, waiting = 2, 1


def display_on(terminal: bool, columns: int = 100) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    environ = {"TERM": "xterm", "COLUMNS": str(columns)}
    console = Console(file=out, force_terminal=terminal, _environ=environ, highlight=False)
    display = Display(console)
    display.watch(Engine())
    display.started(START)
    for _ in range(4):
        display.replied(Entry(round=0, client=0, kind=HANDSHAKE, down_bytes=1))
    return display, out


def test_speed_and_time_left_follow_from_what_is_done() -> None:
    numbers = Numbers(rounds=10, asked=4)
    assert (numbers.share, numbers.left(100.0), numbers.a_second(100.0)) == (0.0, None, 0.0)
    numbers.began, numbers.closed, numbers.done, numbers.replies = 100.0, 2, 2, 10
    assert numbers.share == 0.25
    assert numbers.a_second(120.0) == 0.5
    assert numbers.left(120.0) == pytest.approx(60.0)  # a quarter took 20 seconds
    numbers.pending = 1  # three of the four are through, although not all replies are there
    assert (numbers.trained, numbers.share) == (3, 0.275)
    numbers.pending = 9  # messages of another kind wait as well
    assert numbers.trained == 2
    numbers.closed, numbers.done = 10, 4
    assert (numbers.share, numbers.left(120.0)) == (1.0, 0.0)


def test_a_run_that_goes_on_shows_the_bytes_and_failures_of_the_whole_run() -> None:
    out = io.StringIO()
    display = Display(Console(file=out))
    asked = (Entry(round=0, client=0, kind=HANDSHAKE, down_bytes=1, up_bytes=2),)
    display.started(replace(START, reports=(report(1),), handshake=asked))
    assert "goes on after round 1 of 2" in out.getvalue()
    numbers = display._numbers
    assert (numbers.closed, numbers.before, numbers.failed) == (1, 1, 1)
    assert (numbers.up_bytes, numbers.down_bytes) == (2_000_002, 3_000_001)
    numbers.began, numbers.asked, numbers.done = 100.0, 4, 2
    assert numbers.left(110.0) == pytest.approx(10.0)  # of the second half, half took 10 seconds


def test_times_and_sizes_are_written_as_people_read_them() -> None:
    assert [span(s) for s in (None, 0.9, 168, 90_000)] == [
        *("-:--:--", "0:00:00", "0:02:48", "1 day, 1:00:00")
    ]
    assert [size(n) for n in (0, 1_234_567, 1_234_567_890)] == ["0.00 MB", "1.23 MB", "1.23 GB"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc here")
def test_the_memory_is_that_of_this_process() -> None:
    resource = pytest.importorskip("resource")
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0.2 * peak < (resident() or 0) <= 1.01 * peak + 2**20


def test_a_terminal_shows_three_lines_with_everything_in_them() -> None:
    display, out = display_on(terminal=True)
    display.replied(entry())
    display.replied(entry("evaluate", failed=True))
    time.sleep(0.6)  # it is drawn four times a second
    seen = ANSI.sub("", out.getvalue())
    assert re.search(r"round 1/2 ━.* 0:00:00, 0:00:0\d left", seen)
    assert re.search(r"clients 1/4  2 running  1 queued  1 failed  \d+\.\d a second", seen)
    assert "up 4.00 MB  down 6.00 MB" in seen
    display.round_closed(report(1), [], lambda folder: None)
    time.sleep(0.6)
    seen = ANSI.sub("", out.getvalue())
    assert "round 2/2" in seen and "accuracy 0.2500  up 4.00 MB" in seen
    assert ("this process" in seen) == (resident() is not None)
    display.stop()
    display.stop()
    assert "round 1: clients" not in seen  # that is for files


def test_lines_are_shorter_than_a_narrow_terminal() -> None:
    display, out = display_on(terminal=True, columns=40)
    display.replied(entry())
    time.sleep(0.6)
    display.stop()
    lines = ANSI.sub("", out.getvalue()).partition("before round 1")[2].splitlines()[1:]
    assert any("clients 1/4" in line for line in lines)
    assert max(len(part) for line in lines for part in line.split("\r")) <= 37


def test_a_file_gets_a_line_a_round_and_no_control_characters() -> None:
    display, out = display_on(terminal=False)
    for number in (1, 2):
        for _ in range(4):
            display.replied(entry())
        time.sleep(0.05)
        display.round_closed(report(number), [], lambda folder: None)
    display.stop()
    rounds = [line for line in out.getvalue().splitlines() if line.startswith("round ")]
    assert rounds[0].startswith("round 1: clients 3/4  accuracy 0.2500  up 2.000 MB  down 3.000 MB")
    assert rounds[0].endswith("1.5 s  0:00:00 left") and rounds[1].endswith("1.5 s")
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_an_engine_that_says_nothing_of_its_clients_is_no_trouble() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, _environ={"TERM": "xterm"}))
    display.watch(object())
    display.started(START)
    display.replied(entry())
    time.sleep(0.4)
    display.stop()
    assert "clients 1/4  0 failed" in ANSI.sub("", out.getvalue())


# --- engines ------------------------------------------------------------------------------------


def test_the_engine_of_one_process_says_who_is_at_work_and_who_waits() -> None:
    told: list[tuple[int, int]] = []

    def app(message: Message, context: Context) -> Message:
        told.append((grid.running, grid.waiting))
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 3)
    assert isinstance(grid, Workload)
    ask(grid)
    assert told == [(1, 2), (1, 1), (1, 0)]
    assert (grid.running, grid.waiting) == (0, 0)


# --- a terminal ---------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from logging import WARNING
from pathlib import Path

sys.path[:0] = sys.argv[1:3]
import typer
from flwr.common.logger import log
from test_display import START, Engine, entry, report
from fl_darex.commands.ends import ended, shown
from fl_darex.commands.messages import plain_console
from fl_darex.commands.settings import quiet
from fl_darex.observers.display import Display
from fl_darex.observers.run_folder import RunFolder

quiet()
console = plain_console()
folder = RunFolder(Path(sys.argv[3]))
try:
    with ended(folder, console), folder, shown(Display(console)) as display:
        folder.reserve(START.config)
        folder.started(START)
        display.watch(Engine())
        display.phases.begin("loading")
        time.sleep(0.3)
        log(WARNING, "said while it loads")
        display.started(START)
        display.replied(entry())
        time.sleep(0.6)
        log(WARNING, "said in mid run")
        time.sleep(0.6)
        print("READY", flush=True)
        time.sleep(60)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def screen(data: str) -> list[str]:
    """What a terminal shows after it has been sent this."""
    lines, row, column = [""], 0, 0
    for order, letter, text in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|([\s\S])", data):
        if letter == "A":
            row -= int(order or 1)
        elif letter == "K":
            lines[row] = "" if order == "2" else lines[row][:column]
        elif text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text == "\r":
            column = 0
        elif text:
            old = lines[row].ljust(column)
            lines[row], column = old[:column] + text + old[column + 1 :], column + 1
    return [line.rstrip() for line in lines]


def test_ctrl_c_leaves_the_terminal_in_order_and_logs_stand_above_the_lines(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent
    pty, termios = (pytest.importorskip(name) for name in ("pty", "termios"))
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] &= ~termios.ISIG  # ^C is shown; as a signal it would also throw output away
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(root.parent), str(tmp_path / "out")],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "90", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    watch = threading.Timer(120, process.kill)
    watch.start()
    data, shows, stops = "", False, False
    with suppress(OSError):  # how Linux says that the other end is gone
        while chunk := os.read(ours, 65536):
            data += chunk.decode("utf-8", "replace")
            if "READY" in data and not shows:
                shows = os.write(ours, b"\x03") == 1
            elif "^C" in data and not stops:
                stops = True
                process.send_signal(signal.SIGINT)
    watch.cancel()
    os.close(ours)
    assert process.wait(60) == 130, data
    assert data.count("\x1b[?25l") == data.count("\x1b[?25h") > 0  # the cursor is there again
    shown = [line for line in screen(data) if line]
    logs = [line for line in shown if "WARNING" in line]
    assert [line.rpartition(":")[2].strip() for line in logs] == [
        *("said while it loads", "said in mid run")
    ]
    assert not any("queued" in line or "━" in line or "loading" == line for line in shown), shown
    assert shown[-1].startswith("stopped; what was done so far is in ")
    assert "clients 1/4  2 running  1 queued" in ANSI.sub("", data)


def test_logs_go_where_errors_go_if_these_are_kept_in_a_file(monkeypatch: Any) -> None:
    from fl_darex.commands.settings import quiet

    logger, kept = logging.getLogger("flwr"), io.StringIO()
    handler, level = logging.StreamHandler(kept), logger.level
    monkeypatch.setattr(sys, "stderr", kept)
    logger.addHandler(handler)
    try:
        quiet()
        assert handler.stream is kept
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
