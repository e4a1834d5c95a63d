"""Replies that agree: Flower ends a run in which one client's names differ from the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from flwr.app import ArrayRecord

from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import view_arrays

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


def alike_besides(replies: list[Reply], refuse: Refuse) -> list[Reply]:
    """Return the replies whose further records look like those of most; the others do not count."""
    found = [_besides(reply) for reply in replies]
    usual = most(found, lambda one: True)
    for reply, one in zip(replies, found, strict=True):
        if one != usual:
            odd = sorted({name for name, *_ in one ^ (usual or frozenset())})[:5]
            text = f"its further records differ from those of most clients: {odd}"
            refuse(reply.terms.slot, PacketError(text, Reason.REPLY))
    return [reply for reply, one in zip(replies, found, strict=True) if one == usual]


def _besides(reply: Reply) -> frozenset[tuple[str, str, frozenset[tuple[str, str]] | None]]:
    """Return names, kinds and what is in the records beside the model and its metrics."""
    found = set()
    for name, record in reply.message.content.items():
        if name in (reply.model, reply.metrics):
            continue
        inside: frozenset[tuple[str, str]] | None = None  # it cannot be read
        with suppress(PacketError):
            values = view_arrays(record) if isinstance(record, ArrayRecord) else record
            inside = frozenset((key, _look(value)) for key, value in values.items())
        found.add((name, type(record).__name__, inside))
    return frozenset(found)


def _look(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if hasattr(value, "dtype") else type(value).__name__


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
