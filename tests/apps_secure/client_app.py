"""A client that needs NumPy alone and holds the model, or another one where its node says so."""

from __future__ import annotations

import os

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record

SHAPES = {"embedding": (1000, 60), "layer.weight": (100, 100), "layer.bias": (100,), "s": ()}
LOST = 1  # the round in which a node that is set up for it dies


def model(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def base(message: Message, context: Context) -> dict[str, np.ndarray]:
    return model(1 if context.node_config.get("other") else 0)


app = ClientApp(mods=[DarexMod(base, secure_only=True)])


@app.train()
def train(message: Message, context: Context) -> Message:
    round_ = int(message.content["config"]["server-round"])
    partition = int(context.node_config["partition-id"])
    if round_ == LOST and context.node_config.get("dies"):
        os._exit(3)
    rng = np.random.default_rng([partition, round_])
    arrays = {
        name: value + rng.normal(scale=0.01, size=value.shape).astype(np.float32)
        for name, value in to_arrays(message.content["arrays"]).items()
    }
    # SuperLink takes equal objects once, and bytes are compared: no two clients say the same.
    metrics = MetricRecord({"num-examples": 1 + partition, "loss": partition + round_ / 16})
    return Message(RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message)
