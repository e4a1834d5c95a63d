"""What tests of federations have in common: one process, strategies, what is heard and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import InProcessGrid

CLIENTS = 4


class Federation(InProcessGrid):
    """The in-process grid, with what was pushed, and replies in reverse on request."""

    def __init__(
        self,
        app: Any,
        clients: int = CLIENTS,
        reverse: bool = False,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(app, clients, run_config)
        self._reverse = reverse
        self.pushed: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        self.pushed += listed
        return super().push_messages(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        return found[::-1] if self._reverse else found


def fedavg(kind: type[FedAvg] = FedAvg, clients: int = CLIENTS, **options: Any) -> FedAvg:
    """A strategy that waits for all clients, and evaluates on them only where it is asked to."""
    made = kind(**{"min_train_nodes": clients, "min_available_nodes": clients} | options)
    if "fraction_evaluate" not in options:
        made.fraction_evaluate = 0.0  # set here: Flower's constructor warns of what is meant
    return made


def rounds(
    strategy: Any, grid: Any, count: int, arrays: Mapping[str, Any] = BASE, **options: Any
) -> Any:
    """Run a strategy on a grid and return Flower's result."""
    return strategy.start(grid, to_record(arrays), num_rounds=count, timeout=60, **options)


def run(
    strategy: Any,
    count: int = 1,
    *,
    mods: list[Any] | None = None,
    app: Any = None,
    clients: int = CLIENTS,
    base: Mapping[str, Any] = BASE,
    broken: tuple[int, ...] = (),
    reverse: bool = False,
) -> dict[str, np.ndarray]:
    """Run a strategy on clients of ``numpy_app`` and return the last model."""
    app = app or numpy_app([DarexMod()] if mods is None else mods, broken)
    return to_arrays(rounds(strategy, Federation(app, clients, reverse), count, base).arrays)


def ask(grid: Grid, content: RecordDict | None = None, timeout: float = 60) -> list[Message]:
    """Send all nodes a query and return their replies, by node."""
    messages = [Message(content or RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=timeout)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def calls(replies: Iterable[Message]) -> list[Any]:
    """What ``remembering_app`` counted so far, by client."""
    return [reply.content["calls"]["n"] for reply in replies]  # type: ignore[call-overload,index]


@contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let pytest hear Flower's logger, which does not pass records on."""
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        yield
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)


def flower_objects(message: Message) -> list[bytes]:
    """What Flower's own code sends of a message: every unique object once."""
    return [one.deflate() for one in get_all_nested_objects(message).values()]


def flower_bytes(message: Message) -> int:
    """What a message weighs by Flower's own serialisation: its objects, and the tree of ids."""
    return sum(map(len, flower_objects(message))) + int(get_object_tree(message).ByteSize())
