"""The metrics that clients send in the clear beside their masked updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from logging import WARNING

from flwr.app import Message, MetricRecord
from flwr.common.logger import log

from fl_darex.errors import PacketError, Reason


def metrics_of(reply: Message) -> MetricRecord:
    """Return a reply's metrics; it has one MetricRecord, or none."""
    return next(iter(reply.content.metric_records.values()), MetricRecord())


def usual(replies: Sequence[Message], asked: Iterable[str]) -> list[str]:
    """Return which of the metrics that were asked for more than half of the replies have."""
    sound = [metrics_of(reply) for reply in replies if reply.has_content()]
    found = []
    for name in asked:
        if 2 * sum(name in one for one in sound) > len(sound):
            found.append(name)
        elif sound:
            log(WARNING, "most clients send no metric %r; this round does without it", name)
    return found


def check(reply: Message, names: Iterable[str]) -> None:
    """Refuse a reply that lacks a metric that others have, or has something else than a number.

    Raises:
        PacketError: If so; one such metric would spoil the mean of all.
    """
    metrics = metrics_of(reply)
    for name in names:
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            kind = value if isinstance(value, float) else type(value).__name__
            raise PacketError(
                f"its metric {name!r} is {kind}, not a finite number, and secure aggregation was "
                "asked for its mean",
                Reason.REPLY,
            )
