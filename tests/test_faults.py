"""Twenty rounds in which clients raise, exit and hang, and workers are killed from outside."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import ray
from apps import BASE, numpy_app
from flwr.app import Context, Message
from flwr.serverapp.strategy import FedAvg
from processes import with_variable

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import InProcessGrid, RayGrid
from fl_darex.strategies import DarexStrategy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS, ROUNDS, SECONDS = 6, 20, 30
MARK = "FL_DAREX_FAULTS"


def fate(partition: int, round_: int) -> str:
    """What a client does in a round: mostly what it should; one at most hangs."""
    hangs = round_ % 10 == 3 and partition == round_ % CLIENTS
    drawn = np.random.default_rng([partition, round_, 7]).random()
    return "hang" if hangs else "raise" if drawn < 0.1 else "exit" if drawn < 0.2 else ""


def troubled(simulated: bool) -> Any:
    app = numpy_app([DarexMod()])

    def client(message: Message, context: Context) -> Message:
        configs = list(message.content.config_records.values())
        round_ = next((c["server-round"] for c in configs if "server-round" in c), 0)
        partition = int(context.node_config["partition-id"])
        does = fate(partition, int(round_)) if round_ else ""  # type: ignore[arg-type]
        if does and (not simulated or does == "raise"):
            raise ValueError("no data here")
        if does == "exit":
            os._exit(1)
        if does == "hang":
            time.sleep(600)
        time.sleep(0.1 if simulated else 0)
        return app(message, context)

    return client


@contextmanager
def killer(grid: RayGrid) -> Iterator[list[int]]:
    """Kill a worker every fifteen seconds."""
    over, killed = threading.Event(), list[int]()

    def kill() -> None:
        while not over.wait(15):
            pids = [
                pid
                for pid in with_variable(MARK, "1".__eq__)
                if _name(pid).startswith(b"ray::Worker")
            ]
            if pids:
                killed.append(pids[len(killed) % len(pids)])
                with suppress(OSError):
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _name(pid: int) -> bytes:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
    return b""


def strategy() -> DarexStrategy:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    return DarexStrategy(inner, p=0.5, seed=4)


def test_every_round_is_made_of_the_clients_that_lived_and_no_process_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MARK, "1")
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    calm, rough = strategy(), strategy()
    expected = calm.start(InProcessGrid(troubled(False), CLIENTS), to_record(BASE), ROUNDS)
    with RayGrid(troubled(True), CLIENTS) as grid, killer(grid) as killed:
        found = rough.start(grid, to_record(BASE), ROUNDS, timeout=SECONDS)
    assert not ray.is_initialized()
    assert len(killed) > 2
    for name, array in to_arrays(expected.arrays).items():
        assert to_arrays(found.arrays)[name].tobytes() == array.tobytes()
    told = [
        {(e.round, e.client): e.failed for e in one.ledger.entries if e.kind == "train"}
        for one in (calm, rough)
    ]
    assert told[0] == told[1]
    assert len(told[0]) == CLIENTS * ROUNDS and 10 < sum(told[0].values()) < 50
    end = time.monotonic() + 30
    others = {os.getpid()}
    while set(with_variable(MARK, "1".__eq__)) - others and time.monotonic() < end:
        time.sleep(0.2)
    assert set(with_variable(MARK, "1".__eq__)) - others == set()
