"""The ServerApp of this repository, on a Grid without an engine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from federations import listening
from flwr.app import Context, Message

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.errors import ConfigError, DarexError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.simulation.in_process import InProcessGrid
from fl_darex.strategies.server_app import app as server_app
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
        pytest.param({"train.lora-rank": 2, "compress.lora": "product"}, marks=pytest.mark.slow),
        pytest.param({"compress.q": "server-validation"}, marks=pytest.mark.slow),
        pytest.param({"compress.q": "layer-q-e"}, marks=pytest.mark.slow),
        {"compress.q": "curvature"},
        pytest.param(
            {"compress.q": "group-server-validation", "server.validation-examples": 20},
            marks=pytest.mark.slow,
        ),
        pytest.param({"compress.method": "wanda", "compress.scope": "row"}, marks=pytest.mark.slow),
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


class Cut(InProcessGrid):
    """Clients of ``flwr run`` in a process that ends in a round, if any."""

    def __init__(self, values: dict[str, object], at: int = 0) -> None:
        super().__init__(app, 2, values)
        self._at = at

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        for message in listed:
            for config in message.content.config_records.values():
                if self._at and config.get("server-round") == self._at:
                    raise SystemExit("the power is gone")
        return super().push_messages(listed)


@pytest.mark.parametrize("more", [{}, {"compress.budget": "6 kB", "server.average": "ema"}])
def test_a_server_app_that_starts_again_goes_on_in_the_folder_of_its_run_or_of_another_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    more: dict[str, object],
) -> None:
    expected = run(tmp_path / "whole", **{"federation.rounds": 4, **more})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    values: dict[str, object] = {**SMALL, "federation.rounds": 4, **more}
    with pytest.raises(SystemExit):
        Cut(values, 3).serve(server_app)
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["engine"]) == ("failed", 2, "flwr")
    with listening(caplog), pytest.raises(SystemExit):  # the same run id
        Cut(values, 4).serve(server_app)
    assert f"the run in '{folder.relative_to(tmp_path / 'here')}' goes on" in caplog.text
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Cut(values | {"federation.resume": str(folder)}).serve(server_app)
    assert (folder / "model" / "model.safetensors").read_bytes() == expected
    assert list((tmp_path / "there").iterdir()) == []
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["resumed"]) == ("finished", 4, 2)
    assert 'resume = ""' in (folder / "config.toml").read_text()


def test_a_folder_that_cannot_be_gone_on_with_is_refused_by_flwr_run_too(tmp_path: Path) -> None:
    values: dict[str, object] = {**SMALL, "federation.rounds": 4}
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"nowhere' is no run folder: it has no config\.toml"):
        Cut(values | {"federation.resume": nowhere}).serve(server_app)
