"""Runs with every adapter: each method and coding, the same bits on each engine, what is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from papers import NEEDS
from safetensors.torch import load_file
from test_cli import lines, weights
from texts import BERT, save_tiny_bert, sentences, write

from fl_darex.adapters import ADAPTERS
from fl_darex.clients.client_app import app
from fl_darex.compression import METHODS
from fl_darex.compression.methods import RIVALS
from fl_darex.config import RunConfig, make_config
from fl_darex.observers.header import rows
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server import Server
from fl_darex.strategies.server_app import make_app
from fl_darex.training.loop import make_optimizer, train
from fl_darex.training.session import Session

CODINGS = ("fp16", "int8", "eden1", "sign", "int4", "eden2")
HEAD = 2 * 16 + 2 + 16 * 16 + 16  # classifier and pooler: the checkpoint lacks both
INPUTS = {"input_ids": torch.arange(8).view(2, 4)}
BASE: dict[str, Any] = {
    "task.name": "text-classification",
    "task.max-length": 16,
    "federation.clients": 2,
    "federation.rounds": 2,
    "train.local-steps": 2,
    "train.batch-size": 4,
    "train.lr": 0.01,
    "compress.p": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = tmp_path_factory.mktemp("adapters")
    save_tiny_bert(made / "bert")
    write(made / "data" / "train.jsonl", sentences(24))
    write(made / "data" / "validation.jsonl", sentences(8))
    return BASE | {"task.model": str(made / "bert"), "task.dataset": str(made / "data")}


@pytest.fixture(params=list(ADAPTERS.first))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings(name: str, **more: Any) -> dict[str, Any]:
    size = {"unilora": 64, "vera": 8, "fourierft": 20}.get(name, 0)
    rank = {"train.lora-rank": 2} if "rank" in ADAPTERS[name].reads else {}
    return {"train.adapter": name, "train.adapter-size": size} | rank | more


def run(config: RunConfig, out: Path) -> Mapping[str, Any]:
    simulate_in_process(make_app(config, [RunFolder(out)]), app, clients=2)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert found["failures"] == 0
    return found


OTHERS = [row.name for row in RIVALS]


@pytest.mark.parametrize("method", [name for name in METHODS.first if name not in OTHERS])
def test_every_method_and_coding_takes_every_adapter(
    name: str, method: str, data: dict[str, Any], tmp_path: Path
) -> None:
    check_takes(method, name, data, tmp_path)


@pytest.mark.parametrize(
    ("method", "name"), list(zip(OTHERS, reversed(ADAPTERS.first), strict=False))
)
def test_every_rival_takes_an_adapter(
    method: str, name: str, data: dict[str, Any], tmp_path: Path
) -> None:
    check_takes(method, name, data, tmp_path)


def check_takes(method: str, name: str, data: dict[str, Any], tmp_path: Path) -> None:
    values = CODINGS[(list(METHODS).index(method) + list(ADAPTERS).index(name)) % len(CODINGS)]
    if ADAPTERS[name].needs_zeros and values in ("sign", "eden1", "eden2"):
        values = "int4"
    compress = {"compress.method": method, "compress.values": values, "compress.dense-below": 0}
    more: dict[str, Any] = {"compress.columns": 0.6} if method == "structured" else {}
    more |= {f"compress.{key}": value for key, value in NEEDS.get(method, {}).items()}
    config = make_config(data | settings(name) | compress | more)
    before = Session(config).read()
    found = run(config, tmp_path / "out")
    assert found["parameters"] == sum(array.size for array in before.values())


@pytest.mark.parametrize("q", ["q-e", "layer-q-e", "curvature", "group-server-validation"])
def test_a_search_for_q_takes_every_adapter_that_it_can(
    name: str, q: str, data: dict[str, Any], tmp_path: Path
) -> None:
    if q == "layer-q-e" and not ADAPTERS[name].matrices:
        return
    few = {"compress.calibration-examples": 4, "server.validation-examples": 4}
    run(make_config(data | settings(name) | few | {"compress.q": q}), tmp_path / "out")


@pytest.mark.parametrize("anchor", ["round", "pretrained"])
def test_a_run_leaves_a_merged_model_that_loads_and_adamr_pulls_towards_its_anchor(
    name: str, anchor: str, data: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    config = make_config(data | settings(name) | {"train.anchor": anchor, "train.lr": 0.05})
    run(config, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").eval()
    base = AutoModelForSequenceClassification.from_pretrained(
        data["task.model"], dtype=torch.float32
    )
    assert model.state_dict().keys() == base.state_dict().keys()
    changed = {
        key
        for key, tensor in base.bert.state_dict().items()
        if "pooler" not in key and not torch.equal(tensor, model.bert.state_dict()[key])
    }
    kinds = {"layernorms": "LayerNorm", "bitfit": "bias", "ia3": "weight"}
    assert changed and all(kinds.get(name, "weight") in key for key in changed if name != "ia3")
    assert (tmp_path / "out" / "model" / "adapter").exists() == (name != "bitfit")


def test_what_a_client_sends_does_not_depend_on_the_past_of_its_process(
    name: str, data: dict[str, Any]
) -> None:
    config = make_config(data | settings(name))
    fresh, busy = Session(config), Session(config)
    start = busy.read()
    assert all(np.array_equal(value, fresh.read()[key]) for key, value in start.items())
    train(busy, 0, 1)
    assert any((busy.read()[key] != value).any() for key, value in start.items())
    replies = []
    for session in (fresh, busy):
        session.write(start)
        train(session, 1, 2)
        replies.append(session.read())
    assert all(np.array_equal(value, replies[1][key]) for key, value in replies[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_every_engine_gives_the_same_bits(
    name: str, engine: str, data: dict[str, Any], tmp_path: Path
) -> None:
    from test_cli import fl_darex

    config = make_config(data | settings(name))
    run(config, tmp_path / "local")
    (tmp_path / "run.toml").write_text(config.to_toml())
    done = fl_darex("run", "run.toml", "--engine", engine, "--out", "there", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "there") == weights(tmp_path / "local")


# --- what rests ----------------------------------------------------------------------------------


def test_the_factor_that_rests_in_a_round_does_not_change(data: dict[str, Any]) -> None:
    session = Session(make_config(data | settings("rolora")))
    for round_, rests in ((1, "A"), (2, "B"), (3, "A")):
        before = session.read()
        train(session, 0, round_)
        after = session.read()
        still = {key for key, value in before.items() if np.array_equal(value, after[key])}
        assert still == {key for key in before if f".lora_{rests}." in key}
        groups = make_optimizer(session).param_groups
        assert sum(len(group["params"]) for group in groups) == len(before) - len(still)


@pytest.mark.parametrize("values", ["fp16", "int8", "int4"])
def test_of_the_factor_that_rests_the_server_hears_exactly_zero(
    values: str, data: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(
        data
        | settings("rolora", **{"compress.values": values, "compress.dense-below": 0})
        | {"federation.rounds": 1}
    )
    first = Session(config).read()
    run(config, tmp_path / "out")
    adapter = load_file(tmp_path / "out" / "model" / "adapter" / "adapter_model.safetensors")
    changed = {
        key.split(".")[-2]
        for key, tensor in adapter.items()
        if "lora_" in key
        and not np.array_equal(tensor.numpy(), first[key.replace(".weight", ".default.weight")])
    }
    assert changed == {"lora_B"}


def test_what_rests_costs_its_share_with_dare_and_nothing_where_the_largest_are_sent(
    data: dict[str, Any], tmp_path: Path
) -> None:
    wide = {"train.lora-rank": 16, "train.lora-targets": "all-linear", "compress.values": "fp32"}
    up = {}
    for method in ("dare", "magnitude"):
        for adapter in ("lora", "rolora"):
            out = tmp_path / f"{method}-{adapter}"
            config = make_config(data | settings(adapter) | wide | {"compress.method": method})
            run(config, out)
            sent = (row for row in lines(out / "clients.jsonl") if row["kind"] == "train")
            up[method, adapter] = sum(row["up_bytes"] for row in sent)
    shapes = {key: value.size for key, value in Session(config).read().items()}
    # Two clients send half of what is left of A in round 1, of B in round 2, four bytes each.
    resting = sum(size for key, size in shapes.items() if ".lora_" in key) * 2 * 4 / 2
    assert abs(up["dare", "lora"] - up["dare", "rolora"]) < 0.02 * up["dare", "lora"]
    assert up["magnitude", "lora"] - up["magnitude", "rolora"] > 0.9 * resting


# --- what is said --------------------------------------------------------------------------------


def test_the_header_names_the_adapter(name: str, data: dict[str, Any]) -> None:
    config = make_config(data | settings(name))
    said = dict(rows(Server(Session(config), []).start(None)))["model"]
    rank = " of rank 2" if ADAPTERS[name].rank else ""
    assert f", {name} adapters{rank}, " in said and said.endswith(" exchanged parameters")


def test_an_adapter_that_is_too_small_for_p_is_said_to_be_sent_whole(
    data: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(data | settings("lora-xs"))
    run(config, tmp_path / "out")
    whole = HEAD + 2 * 2 * 2
    assert f"too small for p = 0.5: all its {whole} entries are sent whole" in caplog.text
    assert BERT["hidden_size"] == 16
