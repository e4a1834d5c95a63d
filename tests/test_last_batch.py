"""Batches of one example, which batch normalisation cannot learn from, and runs without a reply."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import listening
from pictures import SIDE, save_processor, write_folders
from test_cli import fl_darex
from transformers import ResNetConfig, ResNetForImageClassification

from fl_darex.config import TrainConfig, make_config
from fl_darex.training.batches import batch_starts, shuffled
from fl_darex.training.exchange import to_numpy
from fl_darex.training.loop import steps_per_round, train
from fl_darex.training.session import Session


def sizes(examples: int, size: int, count: int) -> list[int]:
    found = shuffled([{"n": n} for n in range(examples)], size, seed=3)
    return [len(next(found)) for _ in range(count)]


@pytest.mark.parametrize(("examples", "size"), [(1000, 8), (1601, 8), (41, 8), (3, 8), (9, 1)])
def test_batches_by_length_hold_each_example_once_and_neighbours_together(
    examples: int, size: int
) -> None:
    rng = np.random.default_rng(4)
    rows = [{"n": n, "text": "x" * int(rng.integers(1, 200))} for n in range(examples)]
    ends = [*batch_starts(examples, size)[1:], examples]
    for by_length in (False, True):
        found = shuffled(rows, size, seed=1, by_length=by_length)
        passes = [[next(found) for _ in ends] for _ in range(2)]
        assert passes[0] != passes[1] or len(ends) == 1
        for batches in passes:
            assert sorted(row["n"] for batch in batches for row in batch) == [*range(examples)]
            assert sorted(map(len, batches)) == sorted(np.diff([0, *ends]).tolist())
            longest = [max(len(row["text"]) for row in batch) for batch in batches]
            padded = sum(n * len(batch) for n, batch in zip(longest, batches, strict=True))
            real = sum(len(row["text"]) for row in rows)
            assert examples < 1000 or (padded < 1.1 * real) == by_length
            assert examples < 1000 or abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert sizes(9, 4, 4) == [4, 5, 4, 5]
    assert sizes(5, 4, 2) == [5, 5]


def test_other_batches_are_cut_as_they_were() -> None:
    assert sizes(10, 4, 6) == [4, 4, 2, 4, 4, 2]
    assert sizes(8, 4, 3) == [4, 4, 4]
    assert sizes(3, 1, 3) == [1, 1, 1]
    assert sizes(1, 4, 2) == [1, 1]


@pytest.mark.parametrize("examples", range(1, 14))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_a_pass_has_every_example_once_and_no_lonely_one(examples: int, size: int) -> None:
    batches = shuffled([{"n": n} for n in range(examples)], size, seed=1)
    found = [next(batches) for _ in batch_starts(examples, size)]
    assert sorted(row["n"] for batch in found for row in batch) == list(range(examples))
    assert examples == 1 or size == 1 or all(len(batch) > 1 for batch in found)


def test_epochs_count_the_batches_that_there_are() -> None:
    config = TrainConfig(local_steps=0, local_epochs=3, batch_size=4)
    assert [steps_per_round(config, n) for n in (1, 4, 5, 8, 9, 10)] == [3, 3, 3, 6, 6, 9]
    two = TrainConfig(local_steps=0, local_epochs=1, batch_size=4, grad_accumulation=2)
    assert [steps_per_round(two, n) for n in (8, 9, 10, 17)] == [1, 1, 2, 2]


def resnet(folder: Path) -> Path:
    """Batch normalisation of one example over one pixel: torch refuses to learn from that."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    config = ResNetConfig(**sizes, layer_type="basic", num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ResNetForImageClassification(config).save_pretrained(folder / "model")
    save_processor(folder / "model")
    assert SIDE <= 32
    write_folders(folder / "data", "train", 11)
    write_folders(folder / "data", "validation", 6)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resnet(tmp_path_factory.mktemp("resnet"))


def session(folder: Path, clients: int) -> Session:
    values = {"task.name": "image-classification", "federation.clients": clients}
    values |= {"task.model": str(folder / "model"), "task.dataset": str(folder / "data")}
    return Session(make_config(values | {"train.batch-size": 4, "train.local-steps": 3}))


def test_a_model_with_batch_normalisation_learns_from_five_examples_in_batches_of_four(
    folder: Path,
) -> None:
    made = session(folder, 2)
    assert [len(made.examples(i)) for i in (0, 1)] == [6, 5]
    assert np.isfinite(train(made, 1, 1).loss)


def test_a_client_with_one_example_learns_by_running_statistics_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = session(folder, 11)
    before = to_numpy(made.tensors)
    with listening(caplog):
        result = train(made, 4, 1)
        train(made, 5, 1)
    assert result.examples == 1 and np.isfinite(result.loss)
    (said,) = set(caplog.messages)
    assert said.startswith("client 4 has one example, so batch normalisation goes by its running")
    after = to_numpy(made.tensors)
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert any(name.endswith("weight") for name in moved)
    assert not any("running" in name for name in moved)
    caplog.clear()
    other = session(folder, 2)
    with listening(caplog):
        train(other, 0, 1)
    assert not caplog.messages
    assert all(module.training for module in other.model.modules())


def test_a_run_without_any_reply_that_counted_ends_as_failed(folder: Path) -> None:
    # Each batch has one example, as is asked: no client can learn.
    (folder / "run.toml").write_text(
        '[task]\nname = "image-classification"\nmodel = "model"\ndataset = "data"\n'
        "[federation]\nclients = 2\nrounds = 2\n[train]\nlocal-steps = 1\nbatch-size = 1\n"
    )
    done = fl_darex("run", "run.toml", "--engine", "local", "--out", "out", cwd=folder)
    assert done.returncode == 1
    assert "no client's reply counted in any of the 2 rounds" in done.stderr
    rounds = [json.loads(line) for line in (folder / "out" / "rounds.jsonl").open()]
    assert [(row["clients"], row["failures"]) for row in rounds] == [(2, 2), (2, 2)]
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["reason"].startswith("no client's reply")
