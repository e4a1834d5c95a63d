"""``fl-darex check``: what a run is going to be, held against what it comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import save_tiny_bert, sentences, write
from typer.testing import CliRunner

from fl_darex.cli import app as command
from fl_darex.clients.client_app import app
from fl_darex.commands.expectation import Expectation
from fl_darex.commands.shares import Shares
from fl_darex.config import make_config
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import expect, make_app
from fl_darex.tasks import load_task


def checked(folder: Path, text: str, *settings: str, columns: int = 80) -> str:
    """Return what ``fl-darex check`` prints of a file, its lines without spaces at the end."""
    path = folder / "run.toml"
    path.write_text(text)
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    done = CliRunner().invoke(command, ["check", str(path), *settings], env=environment)
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.output.splitlines())


# --- who holds what -------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological"])
def test_the_table_counts_what_each_client_is_given(partition: str) -> None:
    task = load_task(make_config({"federation.partition": partition, "federation.clients": 6}))
    found = Shares.of(task)
    assert found.classes == tuple(map(str, range(10)))
    for client in range(6):
        labels = [int(example["label"]) for example in task.partition(client)]
        assert found.counts[client].tolist() == [labels.count(one) for one in range(10)]
    assert found.examples.sum() == 1347


def test_few_clients_have_a_row_each_and_columns_for_their_classes(tmp_path: Path) -> None:
    settings = ["federation.clients=3", "federation.partition=dirichlet"]
    said = checked(tmp_path, "", *settings)
    counts = Shares.of(
        load_task(make_config(dict(s.split("=") for s in settings) | {"federation.clients": 3}))
    ).counts
    for client in range(3):
        row = [str(client), str(counts[client].sum()), *map(str, counts[client])]
        assert row in [line.split() for line in said.splitlines()]
    assert max(map(len, said.splitlines())) <= 100


def test_many_clients_are_summed_up_in_three_rows(tmp_path: Path) -> None:
    said = checked(tmp_path, "", "federation.clients=60")
    lines = [line.split() for line in said.splitlines()]
    assert ["client", "examples", "classes", "of", "the", "largest", "class"] in lines
    (least,), (most,) = ([line for line in lines if line[:1] == [w]] for w in ("least", "most"))
    assert (least[1], most[1]) == ("22", "23")
    assert not any(line[:1] == ["59"] for line in lines)


CLASSES: dict[str, tuple[Any, str, list[str]]] = {
    "short": (("no", "yes"), "by class", ["no", "yes"]),
    "words": (("complaint", "praise"), "by class", ["complaint", "praise"]),
    "long": (
        ("x" * 40, "of [bold] y" * 2),
        f"by class: 0 = of [bold] yof [bold] y, 1 = {'x' * 40}",
        ["0", "1"],
    ),
    "amounts": ((0.5, 3.25), "no classes", []),
}


@pytest.mark.parametrize("labels", CLASSES)
def test_classes_have_the_names_that_the_data_give_them(tmp_path: Path, labels: str) -> None:
    names, kind, titles = CLASSES[labels]
    save_tiny_bert(tmp_path / "bert")
    write(tmp_path / "data" / "train.jsonl", sentences(40, names))
    write(tmp_path / "data" / "validation.jsonl", sentences(12, names))
    text = "[task]\nname = 'text-classification'\nmax-length = 16\n[federation]\nclients = 2\n"
    own = [f"task.model={tmp_path / 'bert'}", f"task.dataset={tmp_path / 'data'}"]
    said = checked(tmp_path, text, *own, columns=120)
    assert f"examples of 2 clients, {kind}\n" in said
    assert ["client", "examples", *titles] in [line.split() for line in said.splitlines()]


def test_a_class_that_nobody_has_is_called_by_its_name(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path / "bert")
    write(tmp_path / "data" / "train.jsonl", sentences(40, ("complaint", "praise")))
    write(tmp_path / "data" / "validation.jsonl", sentences(12, ("complaint", "x" * 70)))
    text = "[task]\nname = 'text-classification'\nmax-length = 16\n[federation]\nclients = 2\n"
    own = [f"task.model={tmp_path / 'bert'}", f"task.dataset={tmp_path / 'data'}"]
    assert f"no client has an example of class {'x' * 70}" in checked(tmp_path, text, *own)


# --- bytes ----------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "int8, one mask": {"compress.values": "int8", "compress.mask": "round"},
    "dense": {"compress.method": "dense", "compress.downlink": "dense"},
    "magnitude, server": {"compress.method": "magnitude", "compress.downlink": "server"},
    "q searched": {"compress.q": "q-e"},
    "adapters": {"train.lora-rank": 4, "compress.p": 0.9},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_takes_the_bytes_that_were_expected(way: str, tmp_path: Path) -> None:
    settings = {"federation.clients": 4, "federation.rounds": 3, "train.local-steps": 2}
    config = make_config(settings | WAYS[way])
    start, found = expect(config)
    expected = Expectation.of(config, found)
    simulate_in_process(make_app(config, [RunFolder(tmp_path / "out")]), app, clients=4)
    rounds = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").open()]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert start.parameters == summary["parameters"]
    for key, size in (("up", expected.up), ("dense_up", expected.plain)):
        assert summary[f"{key}_bytes"] == pytest.approx(12 * size, rel=0.1)
    assert rounds[0]["down_bytes"] == pytest.approx(4 * expected.first, rel=0.15)
    assert rounds[2]["down_bytes"] == pytest.approx(4 * (expected.later or 0), rel=0.15)
    # Of adapters, all B are zeros before round 1 and so one object; the first message is smaller.
    near = 0.2 if way == "adapters" else 0.1
    assert summary["dense_down_bytes"] == pytest.approx(12 * expected.plain, rel=near)
    total = summary["up_bytes"] + summary["down_bytes"]
    assert expected._total() == pytest.approx(total, rel=0.1)
    # The other baseline: as dense, without the model before round 1 where clients hold it.
    held = 4 * (expected.plain - expected.first) * expected.held
    assert summary["held_bytes"] == pytest.approx(held, rel=0.5 if way == "adapters" else 0.02)
    left = summary["dense_total_bytes"] - summary["held_bytes"]
    assert summary["total_ratio_without_held"] == left / summary["total_bytes"]
    assert [row["held_bytes"] > 0 for row in rounds] == [held > 0, False, False]


def test_who_is_not_asked_in_each_round_is_sent_the_steps_of_several(tmp_path: Path) -> None:
    settings = {"federation.clients": 8, "federation.clients-per-round": 2}
    settings |= {"federation.rounds": 12, "train.local-steps": 1}
    config = make_config(settings | {"federation.evaluate": "none"})
    expected = Expectation.of(config, expect(config)[1])
    simulate_in_process(make_app(config, [RunFolder(tmp_path / "out")]), app, clients=8)
    rounds = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").open()]
    later = np.mean([row["down_bytes"] for row in rounds[4:]])
    assert later == pytest.approx(2 * (expected.later or 0), rel=0.4)


def test_the_table_shows_both_baselines_where_clients_hold_the_first_model(tmp_path: Path) -> None:
    said = checked(tmp_path, "", "federation.rounds=2")
    assert "dense: every client is sent the whole model in every round" in said
    assert "except that nobody is sent the model before" in said
    assert "down, a later round" in said and "2 rounds" in said
    said = checked(tmp_path, "", "compress.downlink=dense", "federation.rounds=1")
    assert "but for the first model" not in said and "down, a later round" not in said


# --- what it says besides -------------------------------------------------------------------------


def test_it_names_what_does_nothing_and_what_will_fail(tmp_path: Path) -> None:
    text = "[federation]\nalpha = 0.5\n"
    said = checked(tmp_path, text, "federation.clients=20", "compress.q=q-v", columns=120)
    assert "note: federation.alpha = 0.5 has no effect in this run" in said
    said = checked(tmp_path, text, "federation.clients=40", "compress.q=q-v")
    assert (
        "note: 40 of 40 clients have no more than the compress.calibration-examples = 64 that they "
        "keep out of training, and will fail: set a smaller number"
    ) in said
    said = checked(tmp_path, text, "federation.clients=60", "train.local-epochs=3",
                   "train.local-steps=0")  # fmt: skip
    assert "60 of 60 clients have fewer examples than train.batch-size = 32" in said
    assert "a round: 3 optimizer steps on each client, of 32 examples: 3 times" in said
    assert "clients without" not in checked(tmp_path, "", "compress.q=q-e")


def test_a_mistake_is_one_line_with_the_exit_code_of_run_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "run.toml").write_text("")
    for setting, said in (
        ("compress.pp=0.9", "unknown key 'compress.pp'"),
        ("federation.clients=5000", "federation.clients = 5000 is more than the 1347 training"),
        ("task.model=./nowhere", "task.model = './nowhere'"),
    ):
        done = CliRunner().invoke(command, ["check", str(tmp_path / "run.toml"), setting])
        assert done.exit_code == 2
        assert said in done.output
        assert done.output.startswith("error: ") and done.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_it_needs_no_ray_and_says_what_a_run_says(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nlr = 0.003\n[federation]\nseed = 7\n")
    code = "import sys; sys.modules['ray'] = None; from fl_darex.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "run.toml"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        *("ViTForImageClassification), 202,186 parameters", "1,347 examples to train on, 450 to"),
        *("10 classes", "accuracy, after each round", "10 of 10 a round, 10 rounds"),
        *("seed 7", "adamr, lr 0.003, delta-decay 0.1", "dare, p = 0.99, q = 0.01, fp16"),
    ):
        assert words in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
