"""The ServerApp of this repository, on a Grid without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
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
