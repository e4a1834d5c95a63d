"""SuperNodes with data of their own: ``--node-config 'dataset-path="/data/x"'``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federations import Federation, listening
from flwr.app import Context, Message, RecordDict
from texts import save_tiny_bert, sentences, write

from fl_darex.clients.client_app import app
from fl_darex.config import RunConfig, make_config
from fl_darex.errors import ConfigError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.rescaling.rules import SERVER_RULES
from fl_darex.strategies.server_app import make_app
from fl_darex.training.settings import run_settings, settings_of, settings_record

SMALL = {
    "task.name": "text-classification",
    "task.max-length": 16,
    "federation.clients": 2,
    "federation.rounds": 1,
    "train.local-steps": 1,
    "train.batch-size": 4,
    "compress.p": 0.5,
}


class Nodes(Federation):
    """Nodes with a configuration each, by partition; None takes a key away."""

    def __init__(self, **changes: dict[str, Any]) -> None:
        super().__init__(self._call, 2)  # type: ignore[arg-type]
        self._changes = {int(name[1:]): config for name, config in changes.items()}
        self.replies: list[tuple[int, str, Message]] = []

    def _call(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        changed = context.node_config | self._changes.get(partition, {})
        context.node_config = {k: v for k, v in changed.items() if v is not None}
        reply = app(message, context)
        self.replies.append((partition, message.metadata.message_type, reply))
        return reply

    def examples(self, kind: str) -> dict[int, Any]:
        return {
            partition: next(iter(reply.content.metric_records.values()))["num-examples"]
            for partition, message_type, reply in self.replies
            # The handshake's answer is of the kind of training, and weighs nothing.
            if message_type == kind and reply.content.metric_records
        }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_tiny_bert(folder / "bert")
    write(folder / "data" / "train.jsonl", sentences(40))
    write(folder / "data" / "validation.jsonl", sentences(10))
    write(folder / "mine" / "train.jsonl", sentences(31))  # nothing to evaluate on
    write(folder / "full" / "train.jsonl", sentences(9))
    write(folder / "full" / "validation.jsonl", sentences(7))
    write(folder / "three" / "train.jsonl", sentences(30, (0, 1, 2)))
    write(folder / "other" / "train.jsonl", sentences(30, ("no", "yes")))
    return folder


def run(base: Path, out: Path, nodes: Nodes, **settings: Any) -> dict[str, Any]:
    task = {"task.model": str(base / "bert"), "task.dataset": str(base / "data")}
    changes = {key.replace("_", "."): value for key, value in settings.items()}
    config = make_config(SMALL | task | changes)
    nodes.serve(make_app(config, [RunFolder(out)]))
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_all_training_examples_of_a_node_are_its_own_partition(base, tmp_path):
    nodes = Nodes(p1={"dataset-path": str(base / "mine")})
    summary = run(base, tmp_path / "out", nodes, task_holdout=5, server_strategy="fedavg")
    assert summary["failures"] == 0
    assert nodes.examples("train") == {0: 18, 1: 31}  # (40 - 5) / 2, and everything


def test_a_node_with_its_own_data_needs_no_partition(base, tmp_path):
    nodes = Nodes(p0={"partition-id": None, "dataset-path": str(base / "mine")})
    assert run(base, tmp_path / "out", nodes)["failures"] == 0
    assert nodes.examples("train") == {0: 31, 1: 20}


def test_a_node_evaluates_on_all_of_its_own_evaluation_data_where_clients_evaluate(base, tmp_path):
    nodes = Nodes(p1={"dataset-path": str(base / "full")})
    settings = {"federation_evaluate": "clients", "task_eval-examples": 4}
    assert run(base, tmp_path / "out", nodes, **settings)["failures"] == 0
    assert nodes.examples("train") == {0: 20, 1: 9}
    assert nodes.examples("evaluate") == {0: 2, 1: 7}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{base}/nowhere", "dataset-path = '.*/nowhere' of this SuperNode: no such folder"),
        ("mine", "dataset-path = 'mine' of this SuperNode: no such folder; give the absolute path"),
        (3, "dataset-path = 3 of this SuperNode: no such folder"),
        ("{base}/bert", "has no training data"),
        ("{base}/three", "has the classes 0, 1, 2, which are not those of the run"),
        ("{base}/other", "has the classes no, yes, which are not those of the run"),
    ],
)
def test_data_that_cannot_be_used_cost_that_reply_and_the_servers_log_says_why(
    base, tmp_path, caplog, path, words
):
    import re

    path = path.format(base=base) if isinstance(path, str) else path
    with listening(caplog):
        summary = run(base, tmp_path / "out", Nodes(p1={"dataset-path": path}))
    assert (summary["failures"], summary["rounds"]) == (1, 1)
    assert re.search(f"client 1 does not count this round: .*{words}", caplog.text)


def test_a_node_without_a_partition_is_told_how_to_start(base, tmp_path, caplog):
    with listening(caplog):
        summary = run(base, tmp_path / "out", Nodes(p1={"partition-id": None}))
    assert summary["failures"] == 1
    assert "--node-config 'partition-id=0 num-partitions=3'" in caplog.text


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_what_the_run_shares_out_or_holds_back_is_of_no_account_for_own_data(base, rule):
    config = make_config(
        SMALL
        | {"federation.partition": "dirichlet", "federation.alpha": 0.1, "task.holdout": 3}
        | {"compress.q": rule, "task.train-examples": 5, "train.lr": 0.5}
    )
    Nodes()  # makes this process a driver, so that there can be messages
    message = Message(RecordDict({"config": settings_record(config)}), 1, "train")
    context = Context(1, 1, {"dataset-path": str(base / "mine")}, RecordDict(), {})
    changed = settings_of(message, context)
    assert changed.train == config.train and changed.compress.p == config.compress.p
    assert changed.task.dataset == str(base / "mine")
    assert (changed.task.holdout, changed.task.train_examples) == (0, 0)
    assert (changed.federation.clients, changed.federation.partition) == (1, "iid")
    assert (changed.federation.evaluate, changed.compress.q) == ("none", "dare")


def test_how_many_clients_a_round_has_is_known_to_a_node_with_own_data(base):
    config = make_config(SMALL | {"compress.q": "curvature", "federation.clients-per-round": 2})
    Nodes()
    message = Message(RecordDict({"config": settings_record(config)}), 1, "train")
    context = Context(1, 1, {"dataset-path": str(base / "mine")}, RecordDict(), {})
    assert settings_of(message, context).federation.sample_size == 1
    assert run_settings(message, context).federation.sample_size == 2


def test_digits_has_no_data_of_a_nodes_own(base):
    from fl_darex.tasks import load_task

    message = Message(RecordDict({"config": settings_record(RunConfig())}), 1, "train")
    context = Context(1, 1, {"dataset-path": str(base / "mine")}, RecordDict(), {})
    with pytest.raises(ConfigError, match="'digits' brings its own data"):
        load_task(settings_of(message, context))
