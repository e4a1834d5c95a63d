"""Flower's own tests of its strategies, with `DarexStrategy` and p = 0 around each of them.

Neither Flower's wheel nor its source distribution has these files. ``FLOWER_TESTS`` names a folder
with them: ``framework/py/flwr/serverapp/strategy`` of a clone of Flower at the tag of the version
that is installed. They need ``parameterized``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as package
from flwr.serverapp.strategy import Strategy

from fl_darex.clients import DarexMod
from fl_darex.flower.records import copied, to_arrays, to_record
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies import DarexStrategy

FOLDER = os.environ.get("FLOWER_TESTS", "")
if not FOLDER:
    pytest.skip("FLOWER_TESTS names no folder of Flower's own tests", allow_module_level=True)
pytest.importorskip("parameterized")


def through_a_run(kind: type[Strategy]) -> type[Strategy]:
    """Return a class of strategies whose replies come in a round of clients with the mod."""

    class Through(kind):  # type: ignore[misc, valid-type]
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            inner = object.__new__(kind)
            inner.__dict__ = self.__dict__  # what it remembers is what the test's object remembers
            contents = [reply.content for reply in replies]
            arrays = start_of(self, contents[0])
            wide = any(array.dtype == "float64" for array in arrays.values())
            values = "fp64" if wide else "fp32"
            outer = DarexStrategy(inner, p=0.0, values=values, mask="round")
            grid = InProcessGrid(answering(contents), len(contents))
            with outer.running(grid, timeout=60) as counted:
                asked = outer.configure_train(server_round, arrays, ConfigRecord(), counted)
                return outer.aggregate_train(
                    server_round, counted.send_and_receive(asked, timeout=60)
                )

    Through.__name__ = kind.__name__
    return Through


def answering(contents: list[RecordDict]) -> ClientApp:
    """Return an app whose clients answer what a test says."""
    app = ClientApp(mods=[DarexMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = contents[int(context.node_config["partition-id"])]
        return Message(copied(content), reply_to=message)  # a test may aggregate it once more

    return app


def start_of(strategy: Any, content: RecordDict) -> ArrayRecord:
    """Return the model before the round: the one that a test gave the strategy, or zeros."""
    current = getattr(strategy, "current_arrays", None)
    if current:
        return current if isinstance(current, ArrayRecord) else to_record(current)
    (record,) = content.array_records.values()
    return to_record({name: np.zeros_like(array) for name, array in to_arrays(record).items()})


@contextmanager
def wrapped() -> Iterator[None]:
    """Let whoever imports one of Flower's strategies find the class that goes through a run."""
    patches = []
    for name in package.__all__:
        kind = getattr(package, name)
        if isinstance(kind, type) and issubclass(kind, Strategy) and can_be_wrapped(name):
            module = importlib.import_module(kind.__module__)
            patches.append(patch.object(module, name, through_a_run(kind)))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def can_be_wrapped(name: str) -> bool:
    """Trees are refused, privacy wrappers hold strategies, and the base class is abstract."""
    return not name.startswith(("FedXgb", "Differential")) and name != "Strategy"


package.__path__.append(FOLDER)  # their imports are relative, to each other and to the strategies
with wrapped():
    for file in sorted(Path(FOLDER).glob("*_test.py")):
        module = importlib.import_module(f"{package.__name__}.{file.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test):
                globals()[f"{name}__{file.stem}"] = test


def test_there_are_tests_of_strategies_in_the_folder() -> None:
    files = {name.partition("__")[2] for name in globals() if name.startswith("test_")}
    assert len(files) > 3, f"{FOLDER} holds none of Flower's tests of its strategies"
