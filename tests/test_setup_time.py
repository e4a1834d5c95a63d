"""How long a round takes is how long a round takes: what an engine does before it is not in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.flower.roster import is_handshake
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import make_app

SLOW = 4.0


def slow_to_start(message: Message, context: Context) -> Message:
    """The ClientApp in a worker that takes its time before it can answer at all."""
    if is_handshake(message):
        time.sleep(SLOW / 2)
    answered: Message = app(message, context)
    return answered


def slow_to_train(message: Message, context: Context) -> Message:
    if not is_handshake(message):
        time.sleep(SLOW / 2)
    answered: Message = app(message, context)
    return answered


def first_round(folder: Path, client: Callable[[Message, Context], Message]) -> dict[str, Any]:
    config = make_config({"federation.clients": 2, "federation.rounds": 1, "train.local-steps": 1})
    simulate_in_process(make_app(config, [RunFolder(folder)]), client, clients=2)
    found: dict[str, Any] = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])
    return found


def test_round_1_does_not_count_the_start_of_the_workers_and_counts_its_own_work(
    tmp_path: Path,
) -> None:
    first_round(tmp_path / "warm", app)
    started = first_round(tmp_path / "start", slow_to_start)["seconds"]
    trained = first_round(tmp_path / "train", slow_to_train)["seconds"]
    assert trained > SLOW
    assert trained - started > SLOW / 2
