"""Whatever ends a simulation, no process of it is left, and nothing in Ray's folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import with_variable

SCRIPT = """
import time
from flwr.clientapp import ClientApp
from flwr.app import Message, RecordDict
from fl_darex.simulation import RayGrid

app = ClientApp()

@app.query()
def sleep(message, context):
    time.sleep(1)
    return Message(RecordDict(), reply_to=message)

with RayGrid(app, 2) as grid:
    while True:
        nodes = list(grid.get_node_ids())
        messages = [Message(RecordDict(), node, "query") for node in nodes]
        assert len(list(grid.send_and_receive(messages, timeout=60))) == 2
        print("round", flush=True)
"""
MARK = "FL_DAREX_LEFTOVERS"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
@pytest.mark.parametrize(
    "stop",
    [
        "SIGKILL",
        pytest.param("SIGTERM", marks=pytest.mark.slow),
        pytest.param("raylet", marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_is_killed_leaves_no_process_and_no_folder(stop: str) -> None:
    scratch = Path(tempfile.mkdtemp(dir="/tmp"))  # Ray's sockets take no long path
    env = os.environ | {MARK: str(scratch), "RAY_TMPDIR": str(scratch)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, env=env, text=True
    ) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "round\n"
            (session,) = (path for path in scratch.glob("ray/session_2*") if path.is_dir())
            if stop == "raylet":
                os.kill(_raylet(session), signal.SIGKILL)
            else:
                driver.send_signal(getattr(signal, stop))
            driver.wait(60)
            end = time.monotonic() + 60
            while (left := with_variable(MARK, str(scratch).__eq__)) and time.monotonic() < end:
                time.sleep(0.2)
            assert left == []
            # At SIGTERM Ray itself exits in order, and then keeps its logs.
            assert session.exists() == (stop == "SIGTERM")
        finally:
            driver.kill()
            shutil.rmtree(scratch, ignore_errors=True)


def _raylet(session: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if words[0].endswith(b"/raylet") and any(os.fsencode(session) in word for word in words):
            return int(entry.name)
    raise AssertionError("no raylet")
