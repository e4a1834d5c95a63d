"""What the wrapped strategy is given and what it gives back: one reply that stands for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp.strategy import FedAvg

from fl_darex.wire.records import to_arrays, to_record

from .aggregation import Reply


def averaged(used: Sequence[Reply], arrays: ArrayRecord, strategy: FedAvg) -> Message:
    """Return one reply that stands for all: their average, with a weight of 1."""
    reply = copy.copy(used[0].message)
    metrics = MetricRecord({strategy.weighted_by_key: 1.0})
    reply.content = RecordDict({strategy.arrayrecord_key: arrays, "metrics": metrics})
    return reply


@contextmanager
def metrics_of_all(strategy: FedAvg, used: Sequence[Reply]) -> Iterator[None]:
    """Let the strategy's own function for metrics see all replies, not their average."""
    own = strategy.train_metrics_aggr_fn
    contents = [_without_arrays(reply.message.content) for reply in used]

    def of_all(_: list[RecordDict], key: str) -> MetricRecord:
        try:
            return own(contents, key)
        except Exception as error:  # one client's odd metric must not end the run
            log(WARNING, "the metrics of this round are lost: %s", error)
            return MetricRecord()

    strategy.train_metrics_aggr_fn = of_all
    try:
        yield
    finally:
        strategy.train_metrics_aggr_fn = own


def typed(record: ArrayRecord, base: Mapping[str, Any], counters: Mapping[str, Any]) -> ArrayRecord:
    """Return the strategy's answer in the types that the model has.

    Flower's optimizers answer in float64, and no optimizer's step makes sense on counters.

    Args:
        record: The strategy's answer.
        base: The tensors before the step.
        counters: The clients' mean of tensors that are not floating point.
    """
    if all(str(base[name].dtype) == array.dtype for name, array in record.items()):
        return record
    return to_record(
        {
            name: counters[name] if name in counters else array.astype(base[name].dtype)
            for name, array in to_arrays(record).items()
        }
    )


def start_from(strategy: FedAvg, arrays: ArrayRecord) -> None:
    """Let FedAvgM count its next step from the model that everybody holds.

    It remembers the model that it answered itself, which a rounded step does not lead to.
    """
    if isinstance(getattr(strategy, "current_arrays", None), ArrayRecord):
        strategy.current_arrays = ArrayRecord(dict(arrays))  # type: ignore[attr-defined]


def _without_arrays(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if not isinstance(v, ArrayRecord)})
