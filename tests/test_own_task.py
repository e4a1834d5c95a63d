"""A task of somebody's own, from a file on the path: model, rows and metric."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fl_darex.clients.client_app import app as client_app
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation.in_process import InProcessGrid
from fl_darex.strategies.server_app import serve
from fl_darex.tasks import load_task
from fl_darex.tasks.partitions import Partitions
from fl_darex.training.evaluation import evaluate, mean_loss
from fl_darex.training.loop import train
from fl_darex.training.session import Session

SOURCE = """
from types import SimpleNamespace

import numpy as np
import torch

from fl_darex.tasks import prepare


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(4, 16)
        self.out = torch.nn.Linear(16, 1)

    def forward(self, x, labels=None):
        y = self.out(torch.relu(self.hidden(x)))
        loss = None if labels is None else torch.nn.functional.mse_loss(y[:, 0], labels)
        return SimpleNamespace(loss=loss, logits=y)


def rows(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    sites = [f"s{i % 3}" for i in range(count)]
    return [{"x": row, "y": float(row.sum()), "site": site} for row, site in zip(x, sites)]


def collate(examples):
    x = torch.from_numpy(np.stack([example["x"] for example in examples]))
    return {"x": x, "labels": torch.tensor([example["y"] for example in examples])}


def near(outputs, labels):
    off = np.abs(outputs[:, 0] - labels)
    return {"near": float((off < 0.5).mean()), "worst": float(off.max())}


def regression(config):
    parts = {"train": rows(120, 0), "evaluation": rows(30, 1)}
    return prepare(
        config, parts, metric_name="near", metric=near, collate=collate, build=Net
    )


def unnamed(config):
    parts = {"train": rows(60, 0), "evaluation": rows(9, 1)}
    return prepare(config, parts, metric=near, metric_name="far", collate=collate, build=Net)


def nothing(config):
    return None
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "task_of_mine.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield __import__("task_of_mine")
    del sys.modules["task_of_mine"]


def config(**given: Any) -> Any:
    keys = {
        "task.name": "task_of_mine:regression",
        "federation.clients": 3,
        "federation.rounds": 2,
        "train.local-steps": 20,
        "train.lr": 0.01,
        "compress.p": 0.5,
    }
    dotted = {k.replace("__", ".").replace("_", "-"): v for k, v in given.items()}
    return make_config(keys | dotted)


def test_a_plain_module_on_plain_rows_learns_and_is_measured_by_its_own_metric(module: Any) -> None:
    session = Session(config())
    examples = session.evaluation_examples()
    before = evaluate(session, examples, 1)
    train(session, 0, 1)
    after = evaluate(session, examples, 1)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["loss"] == pytest.approx(mean_loss(session, examples, 1))
    with torch.no_grad():
        said = session.model(module.collate(examples)["x"]).logits[:, 0]
    off = np.abs(said.numpy() - [example["y"] for example in examples])
    assert after["near"] == np.mean(off < 0.5)
    assert after["worst"] == pytest.approx(off.max())


def test_its_model_is_the_same_in_every_session_and_the_global_generator_stays() -> None:
    torch.manual_seed(1)
    first = Session(config())
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second, other = Session(config()), Session(config(federation__seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.labels == () and first.dense == ()
    for name, array in first.base.items():
        np.testing.assert_array_equal(second.base[name], array)
    assert not np.array_equal(other.base["out.weight"], first.base["out.weight"])


def test_a_federation_runs_it_and_saves_its_state(tmp_path: Path) -> None:
    made, folder = config(), RunFolder(tmp_path / "run")
    serve(InProcessGrid(client_app, clients=3), made, [folder])
    summary = folder.summary()
    assert summary["metric_name"] == "near"
    session = Session(made)
    state = load_file(folder.path / "model" / "model.safetensors")
    assert set(state) == set(session.tensors)
    session.model.load_state_dict(state)
    found = evaluate(session, session.evaluation_examples(), 1)["near"]
    assert found == summary["final_metric"] > summary["initial_metric"]
    changed = {name: array.numpy() for name, array in state.items()}
    assert all((changed[name] != array).any() for name, array in session.base.items())


def test_settings_of_the_data_mean_what_they_mean_elsewhere() -> None:
    task = load_task(config(task__holdout=20, task__train_examples=60, task__eval_examples=9))
    assert (len(task.train), len(task.evaluation)) == (60, 9)
    every = {id(row["x"]) for row in (*task.train, *task.evaluation)}
    assert len(every) == 69
    held = load_task(config(compress__q="server-validation", server__validation_examples=50))
    assert (len(held.train), len(held.validation or ())) == (70, 50)
    tuned = load_task(config(task__holdout=20, task__tuning_examples=30))
    assert (len(tuned.train), len(tuned.evaluation)) == (70, 30)
    held_out = {id(row["x"]) for row in load_task(config(task__holdout=20)).evaluation}
    assert not held_out & {id(row["x"]) for row in (*tuned.train, *tuned.evaluation)}
    with pytest.raises(ConfigError, match=r"tuning-examples = 100 leaves nothing of the 100"):
        load_task(config(task__holdout=20, task__tuning_examples=100))
    natural = {"federation__partition": "natural", "federation__partition_column": "site"}
    task = load_task(config(**natural))
    assert {row["site"] for row in task.partition(1)} == {"s1"}
    with pytest.raises(ConfigError, match=r"'seite' is not a column.* columns: x, y, site"):
        load_task(config(**natural | {"federation__partition_column": "seite"}))
    with pytest.raises(ConfigError, match=r"'dirichlet' needs classes as labels.*no labels"):
        load_task(config(federation__partition="dirichlet"))


def test_plain_rows_with_classes_are_divided_as_a_dataset_is() -> None:
    from datasets import Dataset

    rows = [{"label": i % 5, "who": i % 4} for i in range(60)]
    for kind in ("iid", "dirichlet", "pathological", "natural"):
        made = config(
            federation__partition=kind, federation__clients=4, federation__partition_column="who"
        )
        plain, table = (Partitions(r, 5, made.federation) for r in (rows, Dataset.from_list(rows)))
        assert [plain.indices(i) for i in range(4)] == [table.indices(i) for i in range(4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "task.name 'no_such_module:f' cannot be imported"),
        ("task_of_mine:regresion", "task_of_mine has no 'regresion'"),
        (
            "task_of_mine:nothing",
            "task.name = 'task_of_mine:nothing' gave 'NoneType'; it has",
        ),
    ],
)
def test_a_name_that_leads_to_no_task_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(config(task__name=name))


@pytest.mark.parametrize("name", ["mine", "a b:c", "m:", ":f", "m:f.g", "digits\n"])
def test_a_name_of_another_form_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed; allowed: 'digits', 'text-class"):
        config(task__name=name)


def test_a_metric_that_does_not_give_its_main_result_is_refused() -> None:
    session = Session(config(task__name="task_of_mine:unnamed"))
    with pytest.raises(ConfigError, match=r"gives near, worst, and not .* metric_name says, 'far'"):
        evaluate(session, session.evaluation_examples(), 1)


def test_a_model_that_cannot_save_memory_is_refused_where_it_is_asked_to() -> None:
    with pytest.raises(ConfigError, match="Net has no gradient_checkpointing_enable; set it to"):
        Session(config(train__gradient_checkpointing=True))
