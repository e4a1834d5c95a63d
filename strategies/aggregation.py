"""A round's step: the wrapped strategy is given what it needs, and its answer becomes the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flwr.app import ArrayRecord, MetricRecord

from fl_darex.change import Arrays
from fl_darex.compression.update import Before
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import to_record, view_arrays

from .intake import Refuse, Reply, log_refused
from .shared_support import SharedSupport
from .tied import agreed, tied_again
from .wrapped import Wrapped, typed


class RoundResult(NamedTuple):
    """What came of a round.

    Attributes:
        used: The replies that count.
        arrays: The model after the step; None if the strategy took none.
        metrics: The metrics of the round.
    """

    used: list[Reply]
    arrays: ArrayRecord | None
    metrics: MetricRecord | None


def mean_of(
    before: Before, layout: Layout, replies: Sequence[Reply], refuse: Refuse
) -> tuple[Arrays, list[Reply]]:
    """Return what the replies say together that the tensors should be, and the replies used.

    Args:
        before: The tensors that the clients were sent.
        layout: Their layout.
        replies: In partition order.
        refuse: Told of the replies that turn out not to fit their masks.

    Raises:
        PacketError: If no reply can be used, or all weights are 0.
    """
    sound = list(replies)
    while sum(reply.part.weight for reply in sound) > 0.0:
        how = sound[0].terms.uplink.how  # the method knows how its updates add up
        result, odd = how.combine(before, layout, [reply.part for reply in sound])
        if result is not None:
            return result, sound
        # How many entries a mask keeps comes to light when it is drawn: begin again without.
        gone = {id(part) for part in odd}
        for reply in sound:
            if id(reply.part) in gone:
                refuse(reply.terms.slot, _odd(reply))
        sound = [reply for reply in sound if id(reply.part) not in gone]
    raise PacketError(
        "no reply of this round can be used, or all of them have weight 0", Reason.REPLY
    )


def average(
    wrapped: Wrapped,
    round_: int,
    before: Before,
    layout: Layout,
    replies: list[Reply],
    adjust: Callable[[list[Reply], Arrays], None],
    behind: list[Reply] | None = None,
) -> RoundResult:
    """Let the strategy take its step on the mean of the replies.

    Args:
        wrapped: The strategy.
        round_: The federated round.
        before: The tensors that the clients were sent.
        layout: Their layout.
        replies: In partition order.
        adjust: Called with the replies that count and their mean, which it may change.
        behind: The replies of which ``replies`` are the mean already; None: they themselves.

    Raises:
        PacketError: If no reply can be used.
    """
    mean, used = mean_of(before, layout, replies, log_refused)
    used = behind or used
    adjust(used, mean)
    counters = {spec.name: mean[spec.name] for spec in layout.raw}
    start = None
    if wrapped.private and counters:  # noise cannot be added to whole numbers
        mean = {name: array for name, array in mean.items() if name not in counters}
        start = to_record({name: before[name] for name in mean})
    records = [to_record(mean)]
    mean = view_arrays(records[0])  # a whole model is not held twice
    arrays, metrics = wrapped.step(round_, used, records, start)
    after = None if arrays is None else typed(arrays, before, counters)
    if after is not None:
        after = tied_again(before, mean, after, layout)
    return RoundResult(used, after, metrics)


def compare(
    wrapped: Wrapped, round_: int, before: Before, layout: Layout, replies: list[Reply]
) -> RoundResult:
    """Let the strategy compare the replies where all clients have values.

    Arguments are those of `average`.

    Raises:
        PacketError: If no reply can be used.
    """
    replies, layout = agreed(replies, layout, log_refused)
    masks = [reply.update.mask for reply in replies if reply.packed]
    support = SharedSupport(before, layout, masks[0] if masks else None)
    used = agreeing(support.fitting(replies, log_refused), log_refused)
    if not used:
        raise PacketError("no reply of this round can be used", Reason.REPLY)
    records = [support.of(reply.part) for reply in used]
    arrays, metrics = wrapped.step(round_, used, records, support.before())
    after = None if arrays is None else support.expanded(arrays, [reply.part for reply in used])
    return RoundResult(used, after, metrics)


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


def _odd(reply: Reply) -> PacketError:
    return PacketError(
        f"the packet's {reply.update.count} survivors are not as many as its mask keeps",
        Reason.POSITIONS,
    )
