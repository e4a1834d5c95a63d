"""Federated image classification from end to end, with a tiny vision transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import SIDE, picture, save_tiny_vit, write_folders
from test_cli import fl_darex, lines

CONFIG = """
[task]
name = "image-classification"
model = "vit"
dataset = "data"

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
    save_tiny_vit(tmp_path / "vit")
    write_folders(tmp_path / "data", "train", 24)
    write_folders(tmp_path / "data", "validation", 9)
    (tmp_path / "image.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.slow
def test_a_vision_transformer_with_a_fresh_head_is_trained_and_saved(folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    done = fl_darex("run", "image.toml", "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["metric_name"] == "accuracy"
    assert summary["failures"] == 0 and summary["rounds"] == 2
    saved = AutoModelForImageClassification.from_pretrained(folder / "out" / "model")
    assert saved.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    processor = AutoImageProcessor.from_pretrained(folder / "out" / "model")
    batch = processor(images=[picture(0)], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert saved(**batch).logits.shape == (1, 3)
    # The head is sent whole and moves whole; a tenth of the rest is sent in fp16.
    assert (saved.classifier.bias != 0).all()
    trained = [row for row in lines(folder / "out" / "clients.jsonl") if row["kind"] == "train"]
    assert all(row["up_bytes"] < row["dense_up_bytes"] / 5 for row in trained)  # type: ignore[operator]


def test_an_unreadable_image_is_one_clear_line_before_anything_starts(folder: Path) -> None:
    (folder / "data" / "train" / "cat" / "003.png").write_bytes(b"no image")
    done = fl_darex("run", "image.toml", "--out", "out", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "cat/003.png': the image cannot be read" in done.stderr
    assert not (folder / "out").exists()
