"""The ServerApp of this repository, on a Grid without an engine."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from flwr.app import Context, Message

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.errors import DarexError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import make_app

SMALL = {"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 2}


def run(folder: Path, **settings: object) -> bytes:
    config = make_config(SMALL | settings)
    simulate_in_process(make_app(config, [RunFolder(folder)]), app, clients=2)
    assert json.loads((folder / "summary.json").read_text())["failures"] == 0
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train.lora-rank": 2},
        {"train.lora-rank": 2, "compress.lora": "product"},
        {"compress.q": "server-validation"},
        {"compress.q": "layer-q-e"},
        {"compress.q": "curvature"},
        {"compress.q": "group-server-validation", "server.validation-examples": 20},
        {"compress.method": "wanda", "compress.scope": "row"},
    ],
    ids=str,
)
def test_a_second_run_in_one_process_starts_where_the_first_one_did(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    assert run(tmp_path / "one", **settings) == run(tmp_path / "two", **settings)


def broken(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 1 and "arrays" in message.content:
        raise ValueError("no data here")
    return app(message, context)


@pytest.mark.parametrize("least", [1, 2])
def test_a_round_with_fewer_replies_than_are_asked_for_ends_the_run(
    tmp_path: Path, least: int
) -> None:
    settings = {"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 1}
    config = make_config({**settings, "federation.min-replies": least})
    words = r"^round 1: 1 of 2 clients' replies counted, federation\.min-replies = 2; the log says"
    enough = contextlib.nullcontext() if least == 1 else pytest.raises(DarexError, match=words)
    with enough, RunFolder(tmp_path / "run") as folder:
        simulate_in_process(make_app(config, [folder]), broken, clients=2)
    assert folder.status == ("finished" if least == 1 else "failed")
    rounds = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["failures"] for line in rounds] == [1] * (3 - least)
