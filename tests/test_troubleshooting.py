"""The error messages of docs/plug-in.md: each is provoked, and reads as the page says."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from example_apps import ROOT
from federations import Federation, rounds
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, message_size_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from fl_darex.clients import DarexMod
from fl_darex.compression import Terms
from fl_darex.files.atomic import cache_root
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy

TEXT = (ROOT / "docs" / "plug-in.md").read_text("utf-8")
LISTED = re.findall(r"^\| `([^`]+)`", TEXT.partition("## When something is wrong")[2], re.MULTILINE)
ONE = MetricRecord({"num-examples": 1})


def fedavg() -> FedAvg:
    return FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)


def run(app: Any, strategy: Any = None, count: int = 1) -> None:
    rounds(strategy or DarexStrategy(fedavg()), Federation(app, 2), count)


def answering(change: Callable[[dict[str, np.ndarray]], RecordDict], *mods: Any) -> ClientApp:
    """An app with no handler but this: what it answers to the tensors it was sent."""
    app = ClientApp(mods=list(mods or [DarexMod()]))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = change(to_arrays(message.content["arrays"]))
        return Message(content, reply_to=message)

    return app


def reply(arrays: dict[str, np.ndarray], metrics: MetricRecord = ONE) -> RecordDict:
    return RecordDict({"arrays": to_record(arrays), "metrics": metrics})


def nan(_: Any) -> None:
    run(answering(lambda sent: reply({k: v * np.nan for k, v in sent.items()})))


def other_names(_: Any) -> None:
    run(answering(lambda sent: reply({f"model.{k}": v for k, v in sent.items()})))


def other_shape(_: Any) -> None:
    run(answering(lambda sent: reply(sent | {"head.weight": sent["head.weight"][:5]})))


def no_weight(_: Any) -> None:
    run(answering(lambda sent: reply(sent, MetricRecord({"loss": 1.0}))))


def two_records(_: Any) -> None:
    run(
        answering(
            lambda sent: RecordDict({"a1": to_record(sent), "a2": to_record(sent), "metrics": ONE})
        )
    )


def mods_the_wrong_way_round(_: Any) -> None:
    grid = Federation(numpy_app([LocalDpMod(1.0, 1.0, 10.0, 1e-5), DarexMod()]), 2)
    DarexStrategy(fedavg()).start(grid, to_record(BASE), num_rounds=1, timeout=0.5)


def robust_with_masks_of_their_own(_: Any) -> None:
    DarexStrategy(flower.FedMedian())


def not_outermost(_: Any) -> None:
    outer = flower.DifferentialPrivacyServerSideFixedClipping
    run(numpy_app([DarexMod()]), outer(DarexStrategy(fedavg()), 1.0, 0.1, 2))


def another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def another(told: Terms, config: Any) -> None:
        attach(told, config)
        config[Terms.key] = config[Terms.key].replace('"version":4', '"version":5')

    attach = Terms.attach
    monkeypatch.setattr(Terms, "attach", another)
    run(numpy_app([DarexMod()]))


def cache_gone(_: Any) -> None:
    def app(message: Message, context: Context) -> Message:
        answer = numpy_app([DarexMod()])(message, context)  # a new process for each message
        shutil.rmtree(cache_root(), ignore_errors=True)
        return answer

    run(app, count=2)


def cache_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    file = cache_root()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a file where a folder should be")
    run(numpy_app([DarexMod()]))


def no_such_base(_: Any) -> None:
    DarexMod(base="/nowhere/model.safetensors")


def base_that_fails(_: Any) -> None:
    def base(message: Message, context: Context) -> Any:
        raise OSError("the disk is gone")

    run(numpy_app([DarexMod(base=base)]))


def no_partition(_: Any) -> None:
    run(answering(reply, message_size_mod))  # without ours


def percent(_: Any) -> None:
    DarexStrategy(fedavg(), p=99.0)


def dense_by_another_name(_: Any) -> None:
    run(numpy_app([DarexMod()]), DarexStrategy(fedavg(), dense=["classifier.weight"]))


PROVOKED = {
    "training has diverged": nan,
    "the model stays as it is": nan,
    "they differ in names": other_names,
    "has shape": other_shape,
    "the weight 'num-examples'": no_weight,
    "which one is the model?": two_records,
    "in this round or any": two_records,
    "LocalDpMod expects the keys": mods_the_wrong_way_round,
    "use mask='round'": robust_with_masks_of_their_own,
    "has to be the outermost": not_outermost,
    "wire version 5": another_version,
    "lacks an earlier model": cache_gone,
    "models cannot be kept in": cache_read_only,
    "the base model cannot be had": base_that_fails,
    "there is no file or folder": no_such_base,
    "got free slots": no_partition,
    "p must be in [0, 1)": percent,
    "dense names no such tensor": dense_by_another_name,
    "Received 1 results": no_partition,
}


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path / "cache"))
    logger, handler = logging.getLogger("flwr"), Kept()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_every_message_of_the_page_is_provoked_here():
    assert all(sum(part in listed for part in PROVOKED) == 1 for listed in LISTED), LISTED
    assert len(LISTED) == len(PROVOKED) >= 10


@pytest.mark.parametrize("part", PROVOKED)
def test_a_message_reads_as_the_page_says(part, kept, monkeypatch):
    errors: list[str] = []
    reply_to = Federation._reply

    def noted(self: Federation, message: Message) -> Message:
        answer = reply_to(self, message)
        errors.extend([answer.error.reason] if answer.has_error() else [])
        return answer

    monkeypatch.setattr(Federation, "_reply", noted)
    try:
        PROVOKED[part](monkeypatch)
    except (ValueError, RuntimeError) as error:
        errors.append(str(error))
    (listed,) = (one for one in LISTED if part in one)
    pieces = listed.split("...")  # what differs from case to case
    said = [line for line in [*kept.lines, *errors] if all(piece in line for piece in pieces)]
    assert said, "\n".join([listed, *kept.lines, *errors])


def test_the_tests_model_is_what_the_messages_name():
    assert BASE["head.weight"].shape == (10, 50)
