"""Replies that agree: Flower ends a run in which one client's names differ from the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from fl_darex.errors import PacketError, Reason

from .reply import Names, Refuse, Reply

One = TypeVar("One")


def agreeing(replies: list[Reply], refuse: Refuse) -> list[Reply]:
    """Return the replies with the tensors and the names that most have; the others do not count.

    Of two structures that as many replies have, the one that was sent counts.
    """
    shapes = [reply.sent.structure for reply in replies]
    usual = most(shapes, lambda shape: any(shape == r.asked.sent.structure for r in replies))
    fitting = []
    for reply, shape in zip(replies, shapes, strict=True):
        if shape == usual:
            fitting.append(reply)
            continue
        odd = sorted({name for name, _ in shape ^ (usual or frozenset())})[:5]
        text = f"its tensors differ from those of most clients: {odd}"
        refuse(reply.terms.slot, PacketError(text, Reason.LAYOUT))
    return alike(fitting, lambda r: r.names, lambda reply, error: refuse(reply.terms.slot, error))


def alike(
    items: Sequence[One],
    names: Callable[[One], Names],
    refuse: Callable[[One, PacketError], None],
) -> list[One]:
    """Return the items with the names that most have."""
    found = [names(one) for one in items]
    usual = most(found, lambda one: not one.unsound)
    for item, one in zip(items, found, strict=True):
        if usual is not None and one != usual:
            refuse(item, PacketError(one.differs(usual), Reason.REPLY))
    return [item for item, one in zip(items, found, strict=True) if one == usual]


Kind = TypeVar("Kind", bound=Hashable)


def most(kinds: Iterable[Kind], better: Callable[[Kind], bool]) -> Kind | None:
    """Return what there is most of; of as many, the better one, else the first."""
    counts = Counter(kinds)
    return max(counts, key=lambda kind: (counts[kind], better(kind)), default=None)
