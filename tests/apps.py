"""Small Flower apps and a Grid without any engine, for tests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_darex.flower.private import adopt_run, node_id_of
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.flower.roster import HANDSHAKE, answer

logging.getLogger("flwr").setLevel(logging.WARNING)

BASE = {
    "layer.weight": np.linspace(-1, 1, 3000, dtype=np.float32).reshape(60, 50),
    "layer.bias": np.zeros(50, dtype=np.float32),
    "head.weight": np.full((10, 50), 0.5, dtype=np.float32),
}


def step_of(partition: int, round_: int, shape: tuple[int, ...]) -> np.ndarray:
    """What client ``partition`` adds to a tensor in a round: its own, and the same each time."""
    rng = np.random.default_rng([partition, round_, *shape])
    return rng.normal(scale=0.01, size=shape).astype(np.float32)


def numpy_app(mods: list[Any] | None = None, broken: tuple[int, ...] = ()) -> ClientApp:
    """A ClientApp that needs NumPy alone; partitions in ``broken`` raise."""
    app = ClientApp(mods=mods or [])

    @app.query(HANDSHAKE)
    def handshake(message: Message, context: Context) -> Message:
        return answer(message, int(context.node_config["partition-id"]))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition in broken:
            raise RuntimeError(f"client {partition} is broken")
        config = next(iter(message.content.config_records.values()))
        name, record = next(iter(message.content.array_records.items()))
        arrays = {
            key: value + step_of(partition, int(config["server-round"]), value.shape)
            for key, value in to_arrays(record).items()
        }
        metrics = MetricRecord({"num-examples": partition + 1, "loss": float(partition)})
        content = RecordDict({name: to_record(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        record = next(iter(message.content.array_records.values()))
        size = sum(float(np.abs(array).sum()) for array in to_arrays(record).values())
        metrics = MetricRecord({"num-examples": 1, "size": size})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class DirectGrid(Grid):
    """Flower's Grid without an engine: calls the ClientApp when messages are pushed."""

    pull_interval = 0.0

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        reverse: bool = False,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._run = adopt_run("test")
        self._app = app
        self.partitions = {node_id_of(index): index for index in range(clients)}
        self._replies: dict[str, Message] = {}
        self._reverse = reverse
        self._run_config = dict(run_config or {})
        self.pushed: list[Message] = []

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self.pushed.append(message)
            message.metadata.__dict__["_message_id"] = f"{len(self.pushed):064x}"
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = self._reply(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self._replies.pop(key) for key in list(message_ids) if key in self._replies]
        return found[::-1] if self._reverse else found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        config = {"partition-id": self.partitions[node], "num-partitions": len(self.partitions)}
        context = Context(self._run.run_id, node, config, RecordDict(), self._run_config)
        content = RecordDict()
        for name, record in message.content.items():  # as a network would: nothing is shared
            content[name] = ArrayRecord(dict(record)) if isinstance(record, ArrayRecord) else record
        copied = Message.__new__(Message)
        copied.__dict__.update(message.__dict__ | {"_content": content})
        try:
            return self._app(copied, context)
        except Exception as error:
            return Message(Error(code=0, reason=str(error)), reply_to=message)


def rounds(strategy: Any, grid: Grid, count: int, arrays: Mapping[str, Any] = BASE) -> Any:
    """Run a strategy on a grid and return Flower's result."""
    return strategy.start(grid, to_record(arrays), num_rounds=count, timeout=60)


def server_app(strategy: Any, count: int, results: list[Any]) -> ServerApp:
    """A ServerApp that runs a strategy and keeps the result."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = ConfigRecord()
        results.append(
            strategy.start(
                grid, to_record(BASE), num_rounds=count, timeout=120, train_config=config
            )
        )

    return app
