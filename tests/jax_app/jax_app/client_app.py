"""A client that takes steps of gradient descent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@jax.jit
def loss(line: jax.Array, x: jax.Array) -> jax.Array:
    """Return the squared error of a line; the right one is 2 x - 1."""
    return jnp.mean((line[0] * x + line[1] - (2 * x - 1)) ** 2)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Learn from the part of the line that this client sees."""
    first = int(context.node_config["partition-id"]) - 1.0
    x, rate = jnp.linspace(first, first + 1, 20), float(context.run_config["learning-rate"])
    line = jnp.asarray(message.content.array_records["arrays"]["line"].numpy())
    for _ in range(10):
        line = line - rate * jax.grad(loss)(line, x)
    arrays = ArrayRecord({"line": Array(np.asarray(line))})
    metrics = MetricRecord({"num-examples": 20, "loss": float(loss(line, x))})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
