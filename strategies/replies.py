"""What comes back: replies that can be used."""

from __future__ import annotations

from logging import WARNING
from typing import NoReturn

from flwr.app import Message
from flwr.common.logger import log

from fl_darex.errors import PacketError, Reason
from fl_darex.wire.terms import Terms

from .aggregation import Reply

_LARGEST_WEIGHT = 2**53


def log_refused(partition: int, error: PacketError) -> None:
    """Say whose reply does not count, and why."""
    log(WARNING, "client %s does not count this round: %s", partition, error)


def read_reply(message: Message, terms: Terms, weighted_by_key: str) -> Reply:
    """Return a reply that can be averaged, its arrays or packet not looked at yet.

    Raises:
        PacketError: If it is an error, or does not hold one model and one weight.
    """
    if message.has_error():
        _refuse(message.error.reason or "the client failed without a reason")
    records = list(message.content.array_records.values())
    metrics = list(message.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        _refuse(
            f"a reply must hold one ArrayRecord and one MetricRecord, "
            f"found {len(records)} and {len(metrics)}"
        )
    weight = metrics[0].get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= _LARGEST_WEIGHT:
        _refuse(f"the weight {weighted_by_key!r} is {weight!r}, not in [0, 2**53]")
    return Reply(message, records[0], float(weight), terms)


def _refuse(message: str) -> NoReturn:
    raise PacketError(message, Reason.REPLY)
