"""A round's step: the wrapped strategy is given what it needs, and its answer becomes the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import WARNING
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log

from fl_darex.change import Arrays, wide
from fl_darex.errors import DarexError, DeltaError, PacketError, Reason
from fl_darex.flower.records import to_record, view_arrays

from .agreement import alike_besides
from .reply import Came, Refuse, Reply
from .sent import Sent, structure
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
        terms, parts = sound[0].terms, [reply.part for reply in sound]
        # The method knows how its updates add up.
        result, odd = terms.uplink.how.combine(sent.arrays, sent.layout, parts, terms)
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
    mean = view_arrays(records[0])  # a whole model is not held twice
    arrays, metrics = wrapped.step(round_, used, records, came.failed, start)
    after = None if arrays is None else typed(arrays, sent, counters)
    if after is not None and structure(after) == sent.structure:
        after = tied_again(sent.arrays, mean, after, sent.layout)
    return RoundResult(used, after, metrics)


def compare(wrapped: Wrapped, round_: int, came: Came, adjust: Adjust) -> RoundResult:
    """Let the strategy compare the replies where all clients have values.

    Arguments are those of `average`; adjusted is the model after the step.

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
    sent = came.usable[0].sent
    replies, layout = agreed(came.usable, sent.layout, came.refuse)
    masks = [reply.update.mask for reply in replies if reply.packed]
    support = SharedSupport(sent.arrays, layout, masks[0] if masks else None)
    used = support.fitting(replies, came.refuse)
    if not used:
        raise PacketError(_NOBODY, Reason.REPLY)
    records = [support.of(reply.part) for reply in used]
    arrays, metrics = wrapped.step(round_, used, records, came.failed, support.before())
    if arrays is None:
        return RoundResult(used, None, metrics)
    after = support.expanded(arrays, [reply.part for reply in used])
    adjust(used, after, sent)
    return RoundResult(used, to_record(after), metrics)


def apart(wrapped: Wrapped, round_: int, came: Came, adjust: Adjust) -> RoundResult:
    """Let the strategy have each client's own arrays, whole: memory is clients x model.

    Arguments are those of `average`; adjusted is each client's model.

    Raises:
        PacketError: If no reply can be used.
    """
    used: list[Reply] = []
    records: list[ArrayRecord] = []
    for reply in came.usable:
        try:
            arrays = reply.arrays()
            adjust([reply], arrays, reply.sent)
            records.append(to_record(arrays))
            used.append(reply)
        except PacketError as error:
            came.refuse(reply.terms.slot, error)
    if not used:
        raise PacketError(_NOBODY, Reason.REPLY)
    adjust(used, {}, used[0].sent)
    answer, metrics = wrapped.step(round_, used, records, came.failed)
    return RoundResult(used, None if answer is None else typed(answer, used[0].sent, {}), metrics)


_STEPS = {"mean": average, "each": average, "support": compare, "own": apart}


def stepped(wrapped: Wrapped, round_: int, came: Came, adjust: Adjust) -> RoundResult:
    """Let the strategy take its step, in the form in which it is given replies.

    Where it fails, it is called once more without the replies whose further records are not like
    those of most: it may have failed for what one client sends. What it changed in itself by then
    stays.

    Raises:
        PacketError: If no reply can be used.
    """
    step = _STEPS[wrapped.form]
    try:
        return step(wrapped, round_, came, adjust)
    except DarexError:
        raise
    except Exception as error:
        kept = alike_besides(came.usable, came.refuse)
        if len(kept) == len(came.usable):
            raise
        text = "round %s: %s raised %s: %s; it is called again without the replies above"
        log(WARNING, text, round_, wrapped.name, type(error).__name__, str(error)[:500])
        came.usable = kept
        return step(wrapped, round_, came, adjust)


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
