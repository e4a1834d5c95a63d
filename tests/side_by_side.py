"""The same app and strategy in plain Flower and inside `DarexStrategy`, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from federations import Federation, fedavg, rounds
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy

EXACT: dict[str, Any] = {"p": 0.0, "values": "fp32"}
"""With these a wrapped strategy equals plain Flower to round-off."""
ONE = {"w": np.ones(20, np.float32)}
CLIENTS = 3
Change = Callable[[dict[str, np.ndarray], int, int], Any]


def app(change: Change, mods: bool = True) -> ClientApp:
    """Answers with what ``change`` makes of the arrays, the partition and the round."""
    made = ClientApp(mods=[DarexMod()] if mods else [])

    @made.train()
    def train(message: Message, context: Any) -> Message:
        partition = int(context.node_config["partition-id"])
        records = message.content.array_records
        arrays = to_arrays(next(iter(records.values()))) if records else {}
        configs = list(message.content.config_records.values())
        round_ = int(configs[0].get("server-round", 0)) if configs else 0
        found = change(arrays, partition, round_)
        if not isinstance(found, RecordDict):
            found = reply(found)
        return Message(found, reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Any) -> Message:
        arrays = to_arrays(next(iter(message.content.array_records.values())))
        total = sum(float(array.sum()) for array in arrays.values())
        metrics = MetricRecord({"num-examples": 1, "sum": total})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def reply(arrays: Any, **metrics: Any) -> RecordDict:
    record = arrays if isinstance(arrays, ArrayRecord) else to_record(arrays)
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1} | metrics)})


def both(
    make: Callable[[], Strategy],
    change: Change,
    count: int = 4,
    clients: int = CLIENTS,
    base: Any = ONE,
    **options: Any,
) -> tuple[Any, Any, Any]:
    """Run plain and wrapped, both on the same clients: two results, and the wrapped strategy."""
    plain = rounds(make(), Federation(app(change, False), clients), count, base)
    strategy = DarexStrategy(make(), **EXACT | options)
    return plain, rounds(strategy, Federation(app(change), clients), count, base), strategy


def assert_equal(found: Any, expected: Any, within: float = 1e-5) -> None:
    one, other = to_arrays(found.arrays), to_arrays(expected.arrays)
    assert set(one) == set(other)
    for name, array in other.items():
        np.testing.assert_allclose(one[name], array, rtol=within, atol=within)


def three(kind: type[FedAvg] = FedAvg, **options: Any) -> FedAvg:
    return fedavg(kind, CLIENTS, **options)


def plus(arrays: dict[str, np.ndarray], by: float) -> dict[str, np.ndarray]:
    return {name: array + array.dtype.type(by) for name, array in arrays.items()}
