"""Federated LoRA from end to end, on both engines, with a tiny encoder made by the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_cli import fl_darex, lines, weights
from texts import BERT, save_tiny_bert, sentences, write

from fl_darex.config import load_config
from fl_darex.training.loop import train
from fl_darex.training.session import Session

pytestmark = pytest.mark.slow  # test_adapter_runs has the same without an engine
CONFIG = """
[task]
name = "text-classification"
model = "bert"
dataset = "data"
max-length = 16

[federation]
clients = 2
rounds = 2

[train]
local-steps = 3
batch-size = 4
lr = 0.01
lora-rank = 2

[compress]
p = 0.5
values = "fp32"
"""
WIDTH, RANK = BERT["hidden_size"], 2
TARGETS = 2  # query and value of the one layer
HEAD = 2 * WIDTH + 2 + WIDTH * WIDTH + WIDTH  # classifier and pooler: the checkpoint lacks both


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lora")
    save_tiny_bert(made / "bert")
    (made / "text.toml").write_text(CONFIG)
    write(made / "data" / "train.jsonl", sentences(40))
    write(made / "data" / "validation.jsonl", sentences(12))
    return made


def run(folder: Path, kind: str, engine: str) -> Path:
    out = f"{kind}-{engine}"
    setting = f"compress.lora={kind}"
    done = fl_darex("run", "text.toml", setting, "--out", out, "--engine", engine, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / out / "summary.json").read_text())["failures"] == 0
    return folder / out


@pytest.fixture(scope="module", params=["factors", pytest.param("product", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    there = folder / f"{request.param}-ray"
    return request.param, there if there.exists() else run(folder, request.param, "ray")


@pytest.mark.slow
def test_both_engines_give_the_same_bits(folder: Path) -> None:
    ray = folder / "factors-ray"
    if not ray.exists():  # another test of this module may have run it
        run(folder, "factors", "ray")
    flower = run(folder, "factors", "flower")
    adapter = Path("model") / "adapter" / "adapter_model.safetensors"
    assert weights(ray) == weights(flower)
    assert (ray / adapter).read_bytes() == (flower / adapter).read_bytes()


@pytest.mark.parametrize("kind", ["factors", "product"])
def test_what_a_client_sends_does_not_depend_on_the_past_of_its_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(folder)
    config = load_config("text.toml", [f"compress.lora={kind}"])
    fresh, busy = Session(config), Session(config)
    start = busy.read()
    train(busy, 0, 1)
    assert any((busy.read()[name] != value).any() for name, value in start.items())
    replies = []
    for session in (fresh, busy):
        session.write(start)
        train(session, 1, 1)
        replies.append(session.read())
    assert all((value == replies[1][name]).all() for name, value in replies[0].items())


def test_base_weights_do_not_change_and_the_merged_model_loads(
    finished: tuple[str, Path], folder: Path
) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    _, out = finished
    base = AutoModel.from_pretrained(folder / "bert", dtype=torch.float32).state_dict()
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert len(AutoTokenizer.from_pretrained(out / "model")) > 5
    changed = {
        name
        for name, tensor in model.bert.state_dict().items()
        if "pooler" not in name and not torch.equal(tensor, base[name])
    }
    stem = "encoder.layer.0.attention.self"
    assert changed == {f"{stem}.query.weight", f"{stem}.value.weight"}


def test_bytes_are_those_of_what_is_exchanged(finished: tuple[str, Path]) -> None:
    kind, out = finished
    pruned = TARGETS * (2 * RANK * WIDTH if kind == "factors" else WIDTH * WIDTH)
    assert json.loads((out / "summary.json").read_text())["parameters"] == pruned + HEAD
    for row in (row for row in lines(out / "clients.jsonl") if row["kind"] == "train"):
        # Base weights would be 4 * 2,000 bytes more. 1,500: Flower's envelope of a reply.
        whole = HEAD + pruned * (kind == "factors")  # adapters as thin as these are sent whole
        sent = 4 * (whole + (HEAD + pruned - whole) / 2)
        assert sent * 0.8 < row["up_bytes"] < sent + 1_500
        assert row["dense_up_bytes"] > 4 * (pruned + HEAD) * 0.9


def test_the_adapter_loads_onto_the_base_and_equals_the_merged_model(
    finished: tuple[str, Path], folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    kind, out = finished
    adapter = out / "model" / "adapter"
    if kind == "product":
        assert not adapter.exists()
        return
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert sum("lora_" in name for name in names) == 2 * TARGETS and len(names) == 2 * TARGETS + 4
    base = AutoModelForSequenceClassification.from_pretrained(folder / "bert", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    inputs = {"input_ids": torch.arange(8).view(2, 4)}
    torch.testing.assert_close(loaded(**inputs).logits, merged(**inputs).logits)


def test_every_process_draws_the_same_adapters(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    config = load_config("text.toml", ["federation.seed=3"])
    one, two = Session(config), Session(config)
    other = Session(load_config("text.toml", ["federation.seed=4"]))
    assert all(torch.equal(t, two.tensors[name]) for name, t in one.tensors.items())
    first = next(name for name in one.tensors if "lora_A" in name)
    assert not torch.equal(one.tensors[first], other.tensors[first])
    assert len(one.dense) == 4
