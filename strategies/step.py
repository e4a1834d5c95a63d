"""A round's step: the wrapped strategy is given what it needs, and its answer becomes the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, MetricRecord
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import to_record

from .aggregation import Arrays, Reply, weighted_mean
from .replies import agreeing, log_refused
from .shared_support import SharedSupport
from .wrapped import Wrapped, typed

Base = Mapping[str, NDArray[Any]]


class Step(NamedTuple):
    """What came of a round.

    Attributes:
        used: The replies that count.
        arrays: The model after the step; None if the strategy took none.
        metrics: The metrics of the round.
    """

    used: list[Reply]
    arrays: ArrayRecord | None
    metrics: MetricRecord | None


def average(
    wrapped: Wrapped,
    round_: int,
    base: Base,
    layout: Layout,
    replies: list[Reply],
    adjust: Callable[[list[Reply], Arrays], None],
    behind: list[Reply] | None = None,
) -> Step:
    """Let the strategy take its step on the mean of the replies.

    Args:
        wrapped: The strategy.
        round_: The federated round.
        base: The tensors that the clients were sent.
        layout: Their layout.
        replies: Opened ones, in partition order.
        adjust: Called with the replies that count and their mean, which it may change.
        behind: The replies of which ``replies`` are the mean already; None: they themselves.

    Raises:
        PacketError: If no reply can be used.
    """
    mean, used = weighted_mean(base, layout, replies, log_refused)
    used = behind or used
    adjust(used, mean)
    counters = {spec.name: mean[spec.name] for spec in layout.raw}
    before = None
    if wrapped.private and counters:  # noise cannot be added to whole numbers
        mean = {name: array for name, array in mean.items() if name not in counters}
        before = to_record({name: base[name] for name in mean})
    records = [to_record(mean)]
    del mean  # a whole model
    arrays, metrics = wrapped.step(round_, used, records, before)
    return Step(used, None if arrays is None else typed(arrays, base, counters), metrics)


def compare(
    wrapped: Wrapped, round_: int, base: Base, layout: Layout, replies: list[Reply]
) -> Step:
    """Let the strategy compare the replies where all clients have values.

    Arguments are those of `average`.

    Raises:
        PacketError: If no reply can be used.
    """
    masks = [reply.packet.mask for reply in replies if reply.packet]
    support = SharedSupport(base, layout, masks[0] if masks else None)
    used = agreeing(support.fitting(replies, log_refused), log_refused)
    if not used:
        raise PacketError("no reply of this round can be used", Reason.REPLY)
    records = [support.of(reply) for reply in used]
    arrays, metrics = wrapped.step(round_, used, records, support.before())
    return Step(used, None if arrays is None else support.expanded(arrays, used), metrics)
