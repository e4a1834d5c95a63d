"""What clients agree to be one tensor, where a round needs one answer for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord

from fl_darex.compression.update import Before
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.ties import tied_groups

from .reply import Refuse, Reply


def agreed(replies: Sequence[Reply], layout: Layout, refuse: Refuse) -> tuple[list[Reply], Layout]:
    """Return the replies that can be compared tensor by tensor, and the layout that they have.

    Args:
        replies: In partition order.
        layout: What becomes of each tensor where nothing is tied.
        refuse: Told of the packets in which others are tied than in most.
    """
    own = [reply.update.layout for reply in replies if reply.packed]
    usual = Counter(own).most_common(1)[0][0] if own else layout
    found = []
    for reply in replies:
        if (update := reply.update.fitted(usual)) is None:
            why = "other tensors are equal in it than in most clients' packets"
            refuse(reply.terms.slot, PacketError(why, Reason.LAYOUT))
        else:
            found.append(replace(reply, part=replace(reply.part, update=update)))
    return found, usual


def tied_again(before: Before, mean: Before, after: ArrayRecord, layout: Layout) -> ArrayRecord:
    """Return a strategy's answer with what is one tensor as one tensor.

    Tensors that were equal before the round, and that the clients changed to equal ones, may come
    back apart, as from a strategy that adds noise to each of them. They would drift apart for good;
    a copy of one is as private.

    Args:
        before: The tensors that the clients were sent.
        mean: What their replies say together.
        after: The strategy's answer.
        layout: What becomes of each tensor.
    """
    found = ArrayRecord(dict(after))
    for first, *others in tied_groups(layout, mean):
        if np.array_equal(mean[first], before[first]):
            continue  # nothing happened to it
        for name in others:
            if np.array_equal(before[first], before[name]):
                found[name] = after[first]
    return found
