"""Federated text classification from end to end, with a tiny encoder made by the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import fl_darex, lines
from texts import save_tiny_bert, sentences, write

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

[compress]
p = 0.9
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_bert(tmp_path / "bert")
    (tmp_path / "text.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    ("labels", "metric"),
    [
        ((0, 1), "accuracy"),
        ((0.5, 3.25, 4.0), "pearson-spearman"),
    ],
)
@pytest.mark.slow
def test_a_text_model_with_a_fresh_head_is_trained_and_saved(
    folder: Path, labels: tuple[float, ...], metric: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write(folder / "data" / "train.jsonl", sentences(40, labels))
    write(folder / "data" / "validation.jsonl", sentences(12, labels))
    done = fl_darex("run", "text.toml", "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["metric_name"] == metric
    assert summary["failures"] == 0 and summary["rounds"] == 2
    saved = AutoModelForSequenceClassification.from_pretrained(folder / "out" / "model")
    fresh = {"classifier.weight", "classifier.bias"}
    assert fresh <= set(saved.state_dict())
    assert len(AutoTokenizer.from_pretrained(folder / "out" / "model")) > 5
    # 96 bytes of header, fp16 for the whole head and pooler and a tenth of the rest.
    trained = [row for row in lines(folder / "out" / "clients.jsonl") if row["kind"] == "train"]
    assert all(row["up_bytes"] < row["dense_up_bytes"] / 5 for row in trained)  # type: ignore[operator]
