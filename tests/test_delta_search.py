"""What ``fl-darex prune`` learns from examples: q, and the norms of WANDA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import BERT, save_tiny_bert, sentences, tiny_tokenizer, write
from typer.testing import CliRunner

from fl_darex import deltas
from fl_darex.activations import layer_inputs
from fl_darex.cli import app
from fl_darex.deltas import Pruning, open_checkpoint, open_delta
from fl_darex.rescaling.rules import PER_TENSOR, RULES

P = 0.97


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare encoder in bfloat16, a classifier that was made of it, and sentences."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("search")
    save_tiny_bert(folder / "base")
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**BERT, num_labels=2))
    held = {
        k: torch.from_numpy(v.load()) for k, v in open_checkpoint(folder / "base").tensors.items()
    }
    model.bert.load_state_dict(held, strict=False)
    with torch.no_grad():
        for tensor in model.bert.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    model.save_pretrained(folder / "tuned")
    tiny_tokenizer().save_pretrained(folder / "tuned")
    write(folder / "data" / "train.jsonl", sentences(60))
    write(folder / "data" / "validation.jsonl", sentences(8))
    return folder


def prune(place: Path, out: str, *options: str) -> tuple[int, str, dict[str, Any]]:
    """The exit code, what is said, and what is in the file."""
    run = CliRunner(env={"NO_COLOR": "1"})
    paths = [str(place / "base"), str(place / "tuned"), "-o", str(place / out)]
    settings = ["task.max-length=24", "compress.calibration-examples=20"]
    with_data = ["--data", str(place / "data"), *settings]
    done = run.invoke(app, ["prune", *paths, "--p", str(P), *with_data, *options])
    said = " ".join((done.stdout + done.stderr).split())
    if done.exit_code:
        return done.exit_code, said, {}
    told = run.invoke(app, ["inspect", str(place / out), "--json"]).stdout
    return 0, said, json.loads(told)


def output(folder: Path, texts: dict[str, torch.Tensor]) -> torch.Tensor:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**texts).logits


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_a_q_that_is_written_down(place, rule):
    code, said, told = prune(place, f"{rule}.darex", "--search", rule, "--values", "fp32")
    assert code == 0, said
    assert f"q by {rule}: " in said and "1-p is 0.03" in said
    qs = {row["q"] for row in told["tensors"] if row["role"] == "pruned"}
    assert all(0.0299 < q <= 1 for q in qs)
    assert len(qs) > 1 if rule in PER_TENSOR else len(qs) == 1


def test_the_searched_q_changes_outputs_no_more_than_that_of_dare(place):
    _, _, told = prune(place, "e.darex", "--search", "q-e", "--values", "fp32")
    (q,) = {row["q"] for row in told["tensors"] if row["role"] == "pruned"}
    base, tuned = open_checkpoint(place / "base"), open_checkpoint(place / "tuned")
    how = Pruning(method="dare", p=P, values="fp32")
    deltas.prune(base, tuned, place / "dare.darex", how)
    rows = list(dict.fromkeys(row["sentence"] for row in sentences(60)))
    texts = tiny_tokenizer()(rows, return_tensors="pt", padding=True)
    expected, found = output(place / "tuned", texts), {}
    for name in ("e", "dare"):
        deltas.apply(base, open_delta(place / f"{name}.darex"), place / f"{name}-out")
        found[name] = float((output(place / f"{name}-out", texts) - expected).abs().mean())
    assert q > 0.031 and found["e"] < found["dare"]


def test_wanda_keeps_what_its_inputs_say(place):
    code, said, told = prune(place, "w.darex", "--method", "wanda")
    assert code == 0, said
    assert told["notes"]["method"] == "wanda"
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(place / "tuned").eval()
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    rows = [row["sentence"] for row in sentences(60)]
    norm = layer_inputs(model, [tiny_tokenizer()(rows, return_tensors="pt", padding=True)])[
        name
    ].norm
    delta = open_delta(place / "w.darex")
    row = next(row for row in delta.header.rows if row.name == name)
    positions, _ = deltas.survivors_of(delta, row)
    before = open_checkpoint(place / "base").tensors[row.base].load()
    change = np.abs(model.state_dict()[name].numpy() - before)
    assert row.kept == round(change.size * (1 - P))
    by_inputs = set(np.argsort(-(change * norm).reshape(-1))[: row.kept].tolist())
    by_size = set(np.argsort(-change.reshape(-1))[: row.kept].tolist())
    kept = set(positions.tolist())
    # 20 of 60 examples weigh inputs nearly as all of them do.
    assert len(kept & by_inputs) > 0.9 * row.kept > len(kept & by_size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--search", "q-w"], "search = 'q-w'; allowed: q-v, q-e, layer-q-v"),
        (["--search", "q-e", "--q", "0.5"], "q = '0.5' and search = 'q-e' are two answers"),
        (["--search", "q-e", "--data", ""], "q-e looks at examples; name them with --data"),
        (["--method", "wanda", "--data", ""], "'wanda' looks at examples; name them with --data"),
        ([], "does nothing without --search or --method wanda"),
        (["--search", "q-e", "--adapter"], "loads FINETUNED, which is an adapter; merge it"),
        (["--search", "q-e", "compress.p=0.5"], "compress.p cannot be set here"),
        (["--search", "q-e", "task.max-lenght=5"], "unknown key 'task.max-lenght'; did you mean"),
        (["--search", "q-e", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused(place, options, words):
    code, said, _ = prune(place, "odd.darex", *options)
    assert code == 2 and words in said, said
    assert not (place / "odd.darex").exists()
