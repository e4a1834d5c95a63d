"""A ServerApp that is killed, and a new run that goes on in the folder of the old one.

Flower 1.41 marks a run whose ServerApp died as failed, and starts none again.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from processes import with_variable
from superlink import Deployment, wait_for

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import make_app

from .checkout import copy_of_the_checkout
from .marks import SLOW, deployment
from .replay import exchanges

pytestmark = deployment(3600)
SETTINGS = {
    "federation.clients": 2,
    "federation.rounds": 6,
    "train.local-steps": 2,
    "server.strategy": "fedadam",
    "server.lr": 0.01,
    "compress.downlink": "server",
    "compress.budget": "20 kB",
}


def server_apps(home: Path) -> list[int]:
    """The processes of ServerApps in a deployment."""

    def runs(process: int) -> bool:
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return False
        return "serverapp" in command

    return [one for one in with_variable("HOME", lambda value: value == str(home)) if runs(one)]


def test_a_new_run_goes_on_where_a_killed_server_app_stopped(tmp_path: Path) -> None:
    flower = Deployment(tmp_path)
    try:
        flower.start_superlink()
        for partition in range(2):
            flower.start_supernode(partition, 2)
        checkout = copy_of_the_checkout(tmp_path)
        first = flower.submit(checkout, **SETTINGS)
        folder = tmp_path / "runs" / first
        rounds = folder / "rounds.jsonl"
        wait_for(
            "round 2",
            lambda: rounds.exists() and len(rounds.read_text().splitlines()) >= 2,
            SLOW,
            flower.logs,
        )
        for process in server_apps(tmp_path):
            os.kill(process, signal.SIGKILL)
        flower.finish(first, SLOW, ends="failed")
        second = flower.submit(checkout, **SETTINGS, **{"federation.resume": str(folder)})
        flower.finish(second, SLOW)
        log = flower.log_of(second)
    finally:
        flower.stop()
    assert flower.left() == []
    assert f"the run in '{folder}' goes on" in log
    assert not (tmp_path / "runs" / second).exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["resumed"]) == ("finished", 6, 1)
    # The SuperNodes still hold the model of the last round before.
    kinds = {row["kind"] for row in exchanges(folder)}
    assert kinds == {"handshake", "train"}
    simulate_in_process(
        make_app(make_config(SETTINGS), [RunFolder(tmp_path / "s")]), app, clients=2
    )
    models = [one / "model" / "model.safetensors" for one in (folder, tmp_path / "s")]
    assert models[0].read_bytes() == models[1].read_bytes()
