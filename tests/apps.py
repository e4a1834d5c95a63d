"""Small Flower apps, for tests."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_darex.flower.records import to_arrays, to_record
from fl_darex.flower.roster import answer, is_handshake

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
    """A ClientApp that needs NumPy alone; partitions in ``broken`` raise.

    It tells its partition without the mod, too.
    """
    app = ClientApp(mods=mods or [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if is_handshake(message):  # there is no mod that would have answered
            return answer(message, partition)
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


def remembering_app() -> ClientApp:
    """Counts in its state how often it was asked; ``fail`` in the message lets it raise, or die."""
    app = ClientApp()

    @app.query()
    def remember(message: Message, context: Context) -> Message:
        count = context.state.metric_records.setdefault("calls", MetricRecord({"n": 0}))
        context.state["calls"] = count
        count["n"] = int(count["n"]) + 1  # type: ignore[call-overload]
        if "fail" in message.content:
            context.state["half"] = ConfigRecord({"written": True})
            if message.content.config_records["fail"].get("die"):
                os._exit(1)
            raise ValueError("no data here")
        return Message(RecordDict({"calls": count}), reply_to=message)

    return app


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
