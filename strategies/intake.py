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
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.private import as_error
from fl_darex.flower.records import (
    arrays_in,
    metrics_in,
    model_among,
    packet_of,
    ties_in,
    to_arrays,
)
from fl_darex.ties import read_ties

from .agreement import agreeing, alike
from .reply import Came, Names, Reply, log_refused, nobody
from .sent import Asked, Sent, structure

LARGEST_WEIGHT = 2.0**53
"""Up to here every number of examples is a float64 of its own."""

# NumPy's own header of an array, and the widest numbers: what a sound tensor has at most.
_LARGEST_HEADER, _LARGEST_ITEM = 65536, 16
# Kinds of NumPy types that a reply may have, by the kind that was sent.
_FITS = {"f": "f", "i": "iubf", "u": "iubf", "b": "iubf"}


@dataclass
class Intake:
    """The rules by which replies count.

    Attributes:
        partition_of: The partition of each node.
        weighted_by: Returns the key of the metric that weighs a reply; a strategy may change it.
        max_weight: Largest weight that is believed.
        clip: Largest norm of an update; None: any.
        equal: Whether all count the same, whatever their weight.

    Raises:
        ValueError: If ``max_weight`` is outside (0, 2**53].
    """

    partition_of: Mapping[int, int]
    weighted_by: Callable[[], str]
    max_weight: float
    clip: float | None
    equal: bool
    _plain: set[int] = field(default_factory=set)
    _noted: bool = False
    _sound: bool = False  # whether a reply counted yet

    def __post_init__(self) -> None:
        if not 0.0 < self.max_weight <= LARGEST_WEIGHT:
            raise ValueError(f"max_weight must be in (0, 2**53], got {self.max_weight!r}")

    def usable(self, messages: Iterable[Message], asked: Mapping[int, Asked]) -> Came:
        """Sort the replies: those that can be added, one per client, in partition order.

        Args:
            messages: All that came back, in any order.
            asked: What each node was asked for.

        Raises:
            DeltaError: If nobody ever counted, and each for a reason that no round will mend.
        """
        came, others = Came(), dict[Any, Sent]()
        for message in sorted(messages, key=self._place):
            node, slot = message.metadata.src_node_id, self._place(message)
            if node not in asked or slot in came.messages:
                error = "nobody asked for this reply, or it came twice"
                log_refused(slot, error)
                continue
            came.messages[slot] = message
            if message.has_error():
                came.fail(slot)
                continue
            try:
                came.usable.append(self._read(message, asked[node], others))
            except PacketError as error:
                came.refuse(slot, error)
        came.usable = agreeing(came.usable, came.refuse)
        self._sound = self._sound or bool(came.usable)
        if not self._sound and (why := came.structural):
            raise nobody(why)
        return came

    def comparable(self, messages: list[Message]) -> list[Message]:
        """Return the replies to an evaluation with an error for each that Flower would choke on."""
        refused: dict[int, Message] = {}
        sound: list[tuple[Message, Names]] = []

        def refuse(message: Message, error: PacketError) -> None:
            log(WARNING, "client %s is not evaluated: %s", self._place(message), error)
            refused[id(message)] = as_error(message, str(error))

        for message in messages:
            if message.has_content():
                try:
                    name, _ = weight_of(message, self.weighted_by(), self.max_weight)
                    metrics = metrics_in(message.content)[name]
                    sound.append((message, Names.of(metrics, name)))
                except PacketError as error:
                    refuse(message, error)
        alike(sound, lambda one: one[1], lambda one, error: refuse(one[0], error))
        return [refused.get(id(message), message) for message in messages]

    def state(self) -> dict[str, Any]:
        """Return whether a reply counted yet, and what was said once."""
        return {"plain": sorted(self._plain), "noted": self._noted, "sound": self._sound}

    def restore(self, state: dict[str, Any]) -> None:
        """Say nothing twice."""
        self._plain, self._noted = set(state["plain"]), state["noted"]
        self._sound = state["sound"]

    def note_plain(self, used: Iterable[Reply]) -> None:
        """Say once of each client that it sends whole tensors although packets were asked for."""
        for reply in used:
            node = reply.message.metadata.src_node_id
            if reply.packed or not reply.terms.uplink.how.packs or node in self._plain:
                continue
            self._plain.add(node)
            log(
                INFO,
                "client %s sends whole tensors: its ClientApp has no DarexMod, or it answers with "
                "other tensors than it was sent; it counts like any other",
                reply.terms.slot,
            )

    def note_arrays(self, messages: Iterable[Message]) -> None:
        """Say once how many bytes of arrays come back from an evaluation: most apps mean none."""
        records = [arrays_in(one.content).values() for one in messages if one.has_content()]
        arrays = [array for some in records for record in some for array in record.values()]
        if arrays and not self._noted:
            self._noted = True
            total = sum(len(array.data) for array in arrays)
            text = "answers to an evaluation carry %s bytes of arrays; leave them out in the app"
            log(WARNING, text, total)

    def _read(self, message: Message, asked: Asked, others: dict[Any, Sent]) -> Reply:
        metrics, weight = weight_of(message, self.weighted_by(), self.max_weight)
        model = _model_of(message, asked.terms)
        update, sent = opened(arrays_in(message.content)[model], asked, others)
        part = Part(update, 1.0 if self.equal else weight)
        if self.clip is not None:
            part = clipped(part, sent.arrays, self.clip, asked.terms.slot)
        return Reply(message, model, metrics, asked, sent, part)

    def _place(self, message: Message) -> int:
        return self.partition_of.get(message.metadata.src_node_id, -1)


def weight_of(message: Message, weighted_by: str, largest: float) -> tuple[str, float]:
    """Return the name of a reply's MetricRecord with the weight, and the weight.

    Raises:
        PacketError: If it does not hold one usable weight.
    """
    records = metrics_in(message.content)
    weighted = [name for name, record in records.items() if weighted_by in record]
    if len(weighted) != 1:
        _refuse(
            f"a reply must hold one MetricRecord with the weight {weighted_by!r}, found "
            f"{len(weighted)} among {sorted(records)}",
            Reason.RECORDS,
        )
    weight = records[weighted[0]][weighted_by]
    if not isinstance(weight, int | float) or not 0 <= weight <= largest:
        _refuse(f"the weight {weighted_by!r} is {weight!r}, not in [0, {largest:g}]")
    return weighted[0], float(weight)


def _model_of(message: Message, terms: Terms) -> str:
    """Return the name of a reply's ArrayRecord that holds the model or a packet."""
    records = arrays_in(message.content)
    found = model_among(records, terms.record, lambda record: packet_of(record) is not None)
    if found is None:
        _refuse(
            f"a reply must hold one ArrayRecord with the model, found {sorted(records)}; put all "
            "of the model into one, and name it as the one that was sent",
            Reason.RECORDS,
        )
    return found


def opened(record: ArrayRecord, asked: Asked, others: dict[Any, Sent]) -> tuple[Update, Sent]:
    """Return what a record says, checked, and what that is a change of.

    Args:
        record: From a stranger.
        asked: What this client was asked for.
        others: What replies of another structure are changes of, by what they are; filled in.

    Raises:
        PacketError: If its packet or its tensors cannot be used.
    """
    sent, packet = asked.sent, packet_of(record)
    if packet is not None:
        if not asked.told:
            _refuse("a packet came where none was asked for", Reason.UNEXPECTED)
        tied = read_ties(sent.layout, ties_in(next(iter(record))))
        return asked.terms.uplink.how.open(packet, tied, asked.terms), sent
    if structure(record) != sent.structure:
        sent = _restructured(record, sent, others)
    _check_whole(record, sent.arrays)
    return WholeUpdate(sent.layout, lambda: to_arrays(record)), sent


def _restructured(record: ArrayRecord, sent: Sent, others: dict[Any, Sent]) -> Sent:
    """Return what tensors of another structure are a change of, one object for all of a kind."""
    shapes = {name: (tuple(array.shape), array.dtype) for name, array in record.items()}
    key = (id(sent), tuple(sorted(shapes.items())))
    data = sum(len(array.data) for array in record.values())
    most = (
        len(record) * _LARGEST_HEADER
        + sum(one.size for one in sent.arrays.values()) * _LARGEST_ITEM
    )
    if sent.arrays and data > most:
        _refuse(f"its tensors have {data} bytes, far more than were sent", Reason.SIZE)
    if key not in others:
        arrays = to_arrays(record)
        if odd := [name for name, array in arrays.items() if array.dtype.kind not in _FITS]:
            _refuse(
                f"{odd[0]!r} is of type {arrays[odd[0]].dtype}, which is no tensor", Reason.LAYOUT
            )
        others[key] = sent.like(arrays)
    return others[key]


def _check_whole(record: ArrayRecord, before: Before) -> None:
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
            if not (np.isfinite(values) | (values == sent)).all():
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
