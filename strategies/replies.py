"""What comes back: replies that can be used."""

from __future__ import annotations

from collections import Counter
from logging import WARNING
from typing import NoReturn

from flwr.app import Message
from flwr.common.logger import log

from fl_darex.compression.terms import Terms
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import packet_of

from .aggregation import Refuse, Reply

LARGEST_WEIGHT = 2.0**53
"""Up to here every number of examples is a float64 of its own."""


def log_refused(partition: int, error: PacketError) -> None:
    """Say whose reply does not count, and why."""
    log(WARNING, "client %s does not count this round: %s", partition, error)


def agreeing(replies: list[Reply], refuse: Refuse) -> list[Reply]:
    """Return the replies that have the metrics that most have.

    Flower ends a run in which one client names a metric that another one does not.
    """
    kinds = Counter(_metric_names(reply) for reply in replies)
    usual = max(kinds, key=kinds.__getitem__, default=None)
    for reply in replies:
        if (found := _metric_names(reply)) != usual:
            odd = sorted(found.symmetric_difference(usual or ()))
            refuse(
                reply.terms.slot,
                PacketError(f"its metrics differ from those of most clients: {odd}", Reason.REPLY),
            )
    return [reply for reply in replies if _metric_names(reply) == usual]


def _metric_names(reply: Reply) -> frozenset[str]:
    return frozenset(reply.message.content.metric_records[reply.metrics])


def read_reply(
    message: Message, terms: Terms, weighted_by_key: str, largest: float = LARGEST_WEIGHT
) -> Reply:
    """Return a reply that can be averaged, its arrays or packet not looked at yet.

    Raises:
        PacketError: If it is an error, or does not hold one model and one weight.
    """
    if message.has_error():
        _refuse(message.error.reason or "the client failed without a reason")
    records = message.content.metric_records
    weighted = [name for name, record in records.items() if weighted_by_key in record]
    if len(weighted) != 1:
        _refuse(
            f"a reply must hold one MetricRecord with the weight {weighted_by_key!r}, found "
            f"{len(weighted)} among {sorted(records)}"
        )
    weight = records[weighted[0]][weighted_by_key]
    if not isinstance(weight, int | float) or not 0 <= weight <= largest:
        _refuse(f"the weight {weighted_by_key!r} is {weight!r}, not in [0, {largest:g}]")
    return Reply(message, _model_of(message, terms), weighted[0], float(weight), terms)


def _model_of(message: Message, terms: Terms) -> str:
    """Return the name of a reply's ArrayRecord that holds the model or a packet."""
    records = message.content.array_records
    if terms.record in records:
        return terms.record
    if len(records) == 1:
        return next(iter(records))
    packets = [name for name, record in records.items() if packet_of(record) is not None]
    if len(packets) != 1:
        _refuse(
            f"a reply must hold one ArrayRecord with the model, found {sorted(records)}; name it "
            "as the one that was sent"
        )
    return packets[0]


def _refuse(message: str) -> NoReturn:
    raise PacketError(message, Reason.REPLY)
