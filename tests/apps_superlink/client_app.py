"""A client that needs NumPy alone and never says what another client says."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def base(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Nothing that the server has, and nothing that the other client has."""
    return {"own": np.full(3, partition_of(context))}


app = ClientApp(mods=[DarexMod(base)])


def own_metrics(arrays: Iterable[np.ndarray], context: Context) -> MetricRecord:
    """Numbers that differ between clients and rounds: SuperLink takes equal objects once."""
    size = sum(float(np.abs(array).sum()) for array in arrays)
    return MetricRecord({"num-examples": 1, "loss": size + partition_of(context)})


@app.train()
def train(message: Message, context: Context) -> Message:
    round_ = int(message.content["config"]["server-round"])
    rng = np.random.default_rng([partition_of(context), round_])
    arrays = {
        name: value + rng.normal(scale=0.01, size=value.shape).astype(np.float32)
        for name, value in to_arrays(message.content["arrays"]).items()
    }
    metrics = own_metrics(arrays.values(), context)
    content = RecordDict({"arrays": to_record(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = own_metrics(to_arrays(message.content["arrays"]).values(), context)
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
