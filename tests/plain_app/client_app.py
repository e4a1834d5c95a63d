"""The clients: every kind of message, mods, a lifespan, state, errors."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from task import MODEL, trained


def _count(context: Context, name: str) -> int:
    counts = context.state.metric_records.setdefault("counts", MetricRecord())
    context.state["counts"] = counts
    counts[name] = int(counts.get(name, 0)) + 1  # type: ignore[arg-type]
    return counts[name]  # type: ignore[return-value]


def outer(message: Message, context: Context, call_next: Any) -> Message:
    """Count messages and mark replies."""
    _count(context, "outer")
    reply: Message = call_next(message, context)
    if reply.has_content():
        reply.content["marked"] = ConfigRecord({"by": ["outer"]})
    return reply


def inner(message: Message, context: Context, call_next: Any) -> Message:
    """Mark replies before the outer mod, which then has the last word."""
    reply: Message = call_next(message, context)
    reply.content["marked"] = ConfigRecord({"by": ["inner"]})
    reply.content["inner"] = ConfigRecord({"seen": True})
    return reply


app = ClientApp(mods=[outer])
parts = SimpleNamespace(app=app)


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:
    """Count beginnings and ends."""
    _count(context, "began")
    yield
    _count(context, "ended")


def choosing(message: Message, context: Context, call_next: Any) -> Message:
    """Take the mod that the message asks for."""
    mods = {"fixed": fixedclipping_mod, "adaptive": adaptiveclipping_mod}
    mod = mods.get(str(message.content.config_records["config"].get("mod")))
    return mod(message, context, call_next) if mod else call_next(message, context)


@app.train(mods=[choosing])
def train(message: Message, context: Context) -> Message:
    """Take a step."""
    config = message.content.config_records["config"]
    partition = int(context.node_config["partition-id"])
    record = message.content.array_records["arrays"]
    arrays = trained(
        record.to_numpy_ndarrays(),
        partition,
        int(config["server-round"]),  # type: ignore[arg-type]
        float(context.run_config["train.lr"]),
    )
    record = ArrayRecord(dict(zip(record, map(Array, arrays), strict=True)))
    metrics = MetricRecord({"num-examples": partition + 1, "loss": float(partition)})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say how far the model has moved."""
    arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
    moved = sum(float(abs(a - b).sum()) for a, b in zip(arrays, MODEL.values(), strict=True))
    metrics = MetricRecord({"num-examples": 1, "moved": moved})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.evaluate("twice")
def twice(message: Message, context: Context) -> Message:
    """Double a number."""
    number = message.content.metric_records["number"]["n"]
    doubled = MetricRecord({"n": 2 * int(number)})  # type: ignore[arg-type]
    return Message(RecordDict({"number": doubled}), reply_to=message)


@app.query(mods=[inner])
def who(message: Message, context: Context) -> Message:
    """Say what a client sees."""
    seen = {
        **{f"node.{key}": value for key, value in context.node_config.items()},
        **{f"run.{key}": value for key, value in context.run_config.items() if key != "out"},
        **{f"count.{key}": value for key, value in context.state["counts"].items()},  # type: ignore[union-attr]
        "round": _count(context, "asked"),
        "node is the context's": context.node_id == message.metadata.dst_node_id,
    }
    return Message(RecordDict({"seen": ConfigRecord(seen)}), reply_to=message)  # type: ignore[arg-type]


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Write to the state and raise, on partition 1."""
    if context.node_config["partition-id"] == 1:
        _count(context, "failed")
        raise ValueError("no data here")
    return Message(RecordDict(), reply_to=message)
