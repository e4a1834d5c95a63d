"""What came: from the replies of a round to those that count.

A reply is read, its packet or tensors are checked, its update is clipped; what cannot be used costs
that reply, with a line in the log, never the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from typing import Any, NoReturn

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.common.logger import log

from fl_darex.change import holds
from fl_darex.compression.terms import Terms
from fl_darex.compression.update import Before, Update, WholeUpdate
from fl_darex.compression.weighted_sum import Part
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import model_among, packet_of, ties_in, to_arrays
from fl_darex.ties import read_ties

LARGEST_WEIGHT = 2.0**53
"""Up to here every number of examples is a float64 of its own."""

# NumPy's own header of an array, and the widest numbers: what a sound tensor has at most.
_LARGEST_HEADER, _LARGEST_ITEM = 65536, 16
# Kinds of NumPy types that a reply may have, by the kind that was sent.
_FITS = {"f": "f", "i": "iubf", "u": "iubf", "b": "iubf"}

Refuse = Callable[[int, PacketError], None]
"""Called with the partition of a reply that cannot be used, and why."""


@dataclass(frozen=True, eq=False)
class Reply:
    """One client's reply that counts.

    Attributes:
        message: The reply itself.
        model: Name of its ArrayRecord that holds the model or a packet.
        metrics: Name of its MetricRecord that holds the weight.
        terms: What this client was told.
        part: Its update, its weight and how far it is shortened.
    """

    message: Message
    model: str
    metrics: str
    terms: Terms
    part: Part

    @property
    def update(self) -> Update:
        """What it says of the model."""
        return self.part.update

    @property
    def packed(self) -> bool:
        """Whether it was a packet, so that the client has the mod."""
        return self.update.mask is not None


def log_refused(partition: int, error: PacketError) -> None:
    """Say whose reply does not count, and why."""
    log(WARNING, "client %s does not count this round: %s", partition, error)


@dataclass
class Intake:
    """The rules by which replies count.

    Attributes:
        partition_of: The partition of each node.
        weighted_by: Key of the metric that weighs a reply.
        max_weight: Largest weight that is believed.
        clip: Largest norm of an update; None: any.
        equal: Whether all count the same, whatever their weight.

    Raises:
        ValueError: If ``max_weight`` is outside (0, 2**53].
    """

    partition_of: Mapping[int, int]
    weighted_by: str
    max_weight: float
    clip: float | None
    equal: bool
    _plain: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not 0.0 < self.max_weight <= LARGEST_WEIGHT:
            raise ValueError(f"max_weight must be in (0, 2**53], got {self.max_weight!r}")

    def usable(
        self,
        messages: Iterable[Message],
        asked: Mapping[int, Terms],
        before: Before,
        layout: Layout,
    ) -> list[Reply]:
        """Return the replies that can be added, one per client, in partition order.

        Args:
            messages: All that came back, in any order.
            asked: The terms of the nodes that were asked.
            before: The tensors that they were sent.
            layout: Their layout.
        """
        found: dict[int, Reply] = {}
        for message in sorted(messages, key=self._place):
            node = message.metadata.src_node_id
            try:
                if node not in asked or node in found:
                    raise PacketError("nobody asked for this reply, or it came twice", Reason.REPLY)
                found[node] = self._read(message, asked[node], before, layout)
            except PacketError as error:
                log_refused(self._place(message), error)
        return list(found.values())

    def state(self) -> dict[str, Any]:
        """Return of which clients it was said that they have no mod."""
        return {"plain": sorted(self._plain)}

    def restore(self, state: dict[str, Any]) -> None:
        """Say nothing twice."""
        self._plain = set(state["plain"])

    def note_plain(self, used: Iterable[Reply]) -> None:
        """Say once of each client that it sends whole tensors although packets were asked for."""
        for reply in used:
            node = reply.message.metadata.src_node_id
            if reply.packed or not reply.terms.uplink.how.packs or node in self._plain:
                continue
            self._plain.add(node)
            log(
                INFO,
                "client %s sends whole tensors: its ClientApp has no DarexMod; it counts like any "
                "other, and is sent the whole model each round",
                reply.terms.slot,
            )

    def _read(self, message: Message, terms: Terms, before: Before, layout: Layout) -> Reply:
        metrics, weight = weight_of(message, self.weighted_by, self.max_weight)
        model = _model_of(message, terms)
        update = opened(message.content.array_records[model], terms, before, layout)
        part = Part(update, 1.0 if self.equal else weight)
        if self.clip is not None:
            part = clipped(part, before, self.clip, terms.slot)
        return Reply(message, model, metrics, terms, part)

    def _place(self, message: Message) -> int:
        return self.partition_of.get(message.metadata.src_node_id, -1)


def weight_of(message: Message, weighted_by: str, largest: float) -> tuple[str, float]:
    """Return the name of a reply's MetricRecord with the weight, and the weight.

    Raises:
        PacketError: If it is an error, or does not hold one usable weight.
    """
    if message.has_error():
        _refuse(message.error.reason or "the client failed without a reason")
    records = message.content.metric_records
    weighted = [name for name, record in records.items() if weighted_by in record]
    if len(weighted) != 1:
        _refuse(
            f"a reply must hold one MetricRecord with the weight {weighted_by!r}, found "
            f"{len(weighted)} among {sorted(records)}"
        )
    weight = records[weighted[0]][weighted_by]
    if not isinstance(weight, int | float) or not 0 <= weight <= largest:
        _refuse(f"the weight {weighted_by!r} is {weight!r}, not in [0, {largest:g}]")
    return weighted[0], float(weight)


def _model_of(message: Message, terms: Terms) -> str:
    """Return the name of a reply's ArrayRecord that holds the model or a packet."""
    records = message.content.array_records
    found = model_among(records, terms.record, lambda record: packet_of(record) is not None)
    if found is None:
        _refuse(
            f"a reply must hold one ArrayRecord with the model, found {sorted(records)}; name it "
            "as the one that was sent"
        )
    return found


def opened(record: ArrayRecord, terms: Terms, before: Before, layout: Layout) -> Update:
    """Return what a record says, checked.

    Raises:
        PacketError: If its packet or its tensors cannot be used.
    """
    packet = packet_of(record)
    if packet is not None:
        tied = read_ties(layout, ties_in(next(iter(record))))
        return terms.uplink.how.open(packet, tied, terms)
    _check_whole(record, before)
    return WholeUpdate(layout, lambda: to_arrays(record))


def _check_whole(record: ArrayRecord, before: Before) -> None:
    if set(record) != set(before):
        odd = sorted(set(record).symmetric_difference(before))[:5]
        _refuse(f"the reply's tensors differ from those sent: {odd}", Reason.LAYOUT)
    for name, array in record.items():
        if len(array.data) > _LARGEST_HEADER + before[name].size * _LARGEST_ITEM:
            _refuse(f"{name!r} has {len(array.data)} bytes, far more than were sent", Reason.SIZE)
    for name, found in to_arrays(record).items():
        sent = before[name]
        if found.shape != sent.shape:
            _refuse(f"{name!r} has shape {found.shape}, sent was {sent.shape}", Reason.LAYOUT)
        if found.dtype.kind not in _FITS.get(sent.dtype.kind, ""):
            _refuse(f"{name!r} is of type {found.dtype}, sent was {sent.dtype}", Reason.LAYOUT)
        if not holds(sent.dtype, found):
            _refuse(f"{name!r} holds numbers that {sent.dtype} cannot hold", Reason.VALUES)
        with np.errstate(over="ignore"):
            values = found.astype(sent.dtype) if sent.dtype.kind == "f" else found
            if not np.isfinite(values).all():
                _refuse(f"{name!r} holds NaN or infinite values", Reason.VALUES)


def tightest(clip: float | None, noise: float | None) -> float | None:
    """Return the smaller of two bounds on an update's norm; None: any norm.

    Args:
        clip: The one that was asked for.
        noise: The one for which the wrapped strategy adds noise.

    Raises:
        ValueError: If ``clip`` is no norm above 0.
    """
    if clip is not None and not 0.0 < clip < math.inf:
        raise ValueError(f"clip is the largest norm of an update, above 0; got {clip!r}")
    return min((norm for norm in (clip, noise) if norm is not None), default=None)


def clipped(part: Part, before: Before, norm: float, client: int) -> Part:
    """Return a client's part, its update at most this long, to float32 round-off.

    Survivors are divided by q before they are added, so a client that clipped its own change can
    be up to ``1/q`` times as long here. What is bounded is therefore what enters the sum; tensors
    that are not floating point do not count.
    """
    found = part.update.norm(before)
    if found <= norm:
        return part
    log(INFO, "client %s: an update of norm %.4g is clipped to %g", client, found, norm)
    return replace(part, factor=norm / found)


def _refuse(message: str, reason: Reason = Reason.REPLY) -> NoReturn:
    raise PacketError(message, reason)
