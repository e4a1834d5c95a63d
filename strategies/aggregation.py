"""A round's step: the wrapped strategy is given what it needs, and its answer becomes the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from fl_darex.change import Arrays, wide
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.flower.records import to_record

from .reply import Came, Refuse, Reply
from .sent import Sent
from .shared_support import SharedSupport
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


def mean_of(replies: Sequence[Reply], refuse: Refuse) -> tuple[Arrays, Sent, list[Reply]]:
    """Return what the replies say together that the tensors should be.

    Replies to different models are added up apart: ``before`` is part of what a client says.

    Args:
        replies: In partition order.
        refuse: Told of the replies that turn out not to fit their masks.

    Returns:
        The mean, what it is a change of (the model that most were sent), and the replies used.

    Raises:
        PacketError: If no reply can be used, or all weights are 0.
    """
    groups: dict[int, list[Reply]] = {}
    for reply in replies:
        groups.setdefault(id(reply.sent), []).append(reply)
    found = [(*some, _weight(some[1])) for g in groups.values() if (some := _group(g, refuse))]
    total = sum(weight for _, _, weight in found)
    if not total:
        raise PacketError(_NOBODY, Reason.REPLY)
    used = [reply for _, some, _ in found for reply in some]
    used.sort(key=lambda reply: reply.terms.slot)
    mean, most, _ = max(found, key=lambda group: len(group[1]))
    if len(found) > 1:
        mean = _mean([(arrays, weight / total) for arrays, _, weight in found])
    return mean, most[0].sent, used


def _group(replies: list[Reply], refuse: Refuse) -> tuple[Arrays, list[Reply]] | None:
    """Return the mean of replies to one model, and those in it; None if there is nothing to add."""
    sound, sent = list(replies), replies[0].sent
    while _weight(sound) > 0.0:
        how = sound[0].terms.uplink.how  # the method knows how its updates add up
        result, odd = how.combine(sent.arrays, sent.layout, [reply.part for reply in sound])
        if result is not None:
            return result, sound
        # How many entries a mask keeps comes to light when it is drawn: begin again without.
        gone = {id(part) for part in odd}
        for reply in sound:
            if id(reply.part) in gone:
                refuse(reply.terms.slot, _odd(reply))
        sound = [reply for reply in sound if id(reply.part) not in gone]
    return None


_NOBODY = "no reply of this round can be used, or all of them have weight 0"

Adjust = Callable[[list[Reply], Arrays, Sent], None]
"""Called with the replies that count, their mean, which it may change, and what that changes."""


def average(
    wrapped: Wrapped, round_: int, came: Came, adjust: Adjust, behind: list[Reply] | None = None
) -> RoundResult:
    """Let the strategy take its step on the mean of the replies.

    Args:
        wrapped: The strategy.
        round_: The federated round.
        came: What came of the round.
        adjust: Told of the mean before the strategy is.
        behind: The replies of which those that came are the mean already; None: they themselves.

    Raises:
        PacketError: If no reply can be used.
    """
    mean, sent, used = mean_of(came.usable, came.refuse)
    used = behind or used
    adjust(used, mean, sent)
    counters = {spec.name: mean[spec.name] for spec in sent.layout.raw}
    start = None
    if wrapped.private and counters:  # noise cannot be added to whole numbers
        mean = {name: array for name, array in mean.items() if name not in counters}
        start = to_record({name: sent.arrays[name] for name in mean})
    records = [to_record(mean)]
    del mean  # a whole model
    arrays, metrics = wrapped.step(round_, used, records, came.failed, start)
    after = None if arrays is None else typed(arrays, sent, counters)
    return RoundResult(used, after, metrics)


def compare(wrapped: Wrapped, round_: int, came: Came, adjust: Adjust) -> RoundResult:
    """Let the strategy compare the replies where all clients have values.

    There is no mean to adjust. Arguments are those of `average`.

    Raises:
        DeltaError: If clients were sent different models.
        PacketError: If no reply can be used.
    """
    if len({id(reply.sent) for reply in came.usable}) > 1:
        raise DeltaError(
            f"{wrapped.name} sent clients different models; there is nothing that all of them "
            "changed: use replies='own' with p=0"
        )
    if not came.usable:
        raise PacketError(_NOBODY, Reason.REPLY)
    masks = [reply.update.mask for reply in came.usable if reply.packed]
    sent = came.usable[0].sent
    support = SharedSupport(sent.arrays, sent.layout, masks[0] if masks else None)
    used = support.fitting(came.usable, came.refuse)
    if not used:
        raise PacketError(_NOBODY, Reason.REPLY)
    adjust(used, {}, sent)
    records = [support.of(reply.part) for reply in used]
    arrays, metrics = wrapped.step(round_, used, records, came.failed, support.before())
    after = None if arrays is None else support.expanded(arrays, [reply.part for reply in used])
    return RoundResult(used, after, metrics)


def apart(wrapped: Wrapped, round_: int, came: Came, adjust: Adjust) -> RoundResult:
    """Let the strategy have each client's own arrays, whole: memory is clients x model.

    There is no mean to adjust. Arguments are those of `average`.

    Raises:
        PacketError: If no reply can be used.
    """
    used: list[Reply] = []
    records: list[ArrayRecord] = []
    for reply in came.usable:
        try:
            records.append(to_record(reply.arrays()))
            used.append(reply)
        except PacketError as error:
            came.refuse(reply.terms.slot, error)
    if not used:
        raise PacketError(_NOBODY, Reason.REPLY)
    adjust(used, {}, used[0].sent)
    arrays, metrics = wrapped.step(round_, used, records, came.failed)
    return RoundResult(used, None if arrays is None else typed(arrays, used[0].sent, {}), metrics)


STEPS = {"mean": average, "each": average, "support": compare, "own": apart}
"""What is made of the replies, by the form in which the strategy is given them."""


def _mean(shares: Sequence[tuple[Arrays, float]]) -> Arrays:
    """Return the weighted mean of models; of counters, in whole numbers."""
    mean: Arrays = {}
    for name, first in shares[0][0].items():
        total = np.zeros(first.shape, wide(first.dtype))
        for arrays, share in shares:
            total += arrays[name] * total.dtype.type(share)
        mean[name] = (total if first.dtype.kind == "f" else np.rint(total)).astype(first.dtype)
    return mean


def _weight(replies: Sequence[Reply]) -> float:
    return sum(reply.part.weight for reply in replies)


def _odd(reply: Reply) -> PacketError:
    return PacketError(
        f"the packet's {reply.update.count} survivors are not as many as its mask keeps",
        Reason.POSITIONS,
    )
