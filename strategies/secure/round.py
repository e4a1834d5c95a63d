"""The server half of secure aggregation: one round, from public keys to the unmasked sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import SystemRandom
from secrets import token_bytes
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_darex.errors import PacketError, Reason
from fl_darex.flower.ledger import ROUND_KEY
from fl_darex.flower.records import SEALED_STYPE, packet_of
from fl_darex.secagg import SecureAggregation, keys
from fl_darex.secagg.masks import is_connected, seat, staying
from fl_darex.secagg.members import Given, Members
from fl_darex.secagg.messages import (
    KEYS,
    MASKED,
    SECURE_KEY,
    SHARES,
    UNMASK,
    UNREAD,
    Stage,
    answer_bytes,
    join,
    rows_of,
)
from fl_darex.secagg.numbers import Mean, Target, shape_of, to_mean
from fl_darex.secagg.ring import Vector
from fl_darex.secagg.sealed_packet import SealedHeader
from fl_darex.secagg.settings import LEAST_CLIENTS
from fl_darex.secagg.shares import SHARE_BYTES

from ..reply import log_refused
from . import metrics

Found = TypeVar("Found")


class SecureRound:
    """Runs the protocol with the clients of one round.

    Everything is kept by slot. The server holds no secret of its own: what it learns is the sum
    of the clients that stay, and who they are.

    Args:
        settings: What was asked for.
        grid: Where the clients are.
        messages: The round's messages, one per client, as the strategy made them.
        slot_of: Slots by node id.
        target: What is summed.
        timeout: Seconds to wait for short answers, where the settings do not say.

    Attributes:
        target: What is summed.
        ring: In which numbers are added.
        stages: What goes with the model to each client that takes part, by slot; see `open`.
        summed: Slots of the clients whose masked updates came; see `unmasked`.

    Raises:
        PacketError: If there are too few clients, or the threshold does not suit so many.
        ValueError: If the sum of so many does not fit into the ring that was asked for.
    """

    def __init__(
        self,
        settings: SecureAggregation,
        grid: Grid,
        messages: Sequence[Message],
        slot_of: Mapping[int, int],
        target: Target,
        timeout: float,
    ) -> None:
        self._settings, self._grid, self.target = settings, grid, target
        self._timeout = settings.timeout or timeout
        self._messages = {slot_of[m.metadata.dst_node_id]: m.metadata for m in messages}
        self._slots = {sent.dst_node_id: slot for slot, sent in self._messages.items()}
        if len(messages) < LEAST_CLIENTS:
            raise PacketError(
                f"secure aggregation needs {LEAST_CLIENTS} clients in a round, got {len(messages)}",
                Reason.REPLY,
            )
        self.ring = settings.ring_for(len(messages))
        self._least = settings.least(len(messages))
        self._survivors = sum(target.counts)
        self._shape = shape_of(target.layout, self.ring.width, self._survivors)
        self._members = Members(session=token_bytes(keys.SESSION_BYTES))
        self.stages: dict[int, Stage] = {}
        self.summed: tuple[int, ...] = ()

    @property
    def caught(self) -> Mapping[int, str]:
        """Who broke the protocol, by slot, and how."""
        return self._members.caught

    def open(self) -> dict[int, Stage]:
        """Exchange keys and shares; return, by slot, what goes with the model to each client.

        Raises:
            PacketError: If too few clients answer.
        """
        members, settings = self._members, self._settings
        members.public = _unique(self._ask(KEYS, dict.fromkeys(self._messages, ()), _read_keys))
        count = len(members.public)
        self._need(count, "keys")
        members.graph = seat(sorted(members.public), settings.degree(count), SystemRandom())
        members.threshold = settings.needed(count)
        rows = {
            slot: [(peer, members.public[peer]) for peer in near]
            for slot, near in members.graph.items()
        }
        shared = self._ask(SHARES, rows, self._read_shared)
        members.commitments = {slot: fixed for slot, (fixed, _) in shared.items()}
        members.masked = staying(members.graph, shared, members.threshold)
        self._need(len(shared), "shares")
        self._need(len(members.masked), "shares to enough others that did")
        letters = {slot: found for slot, (_, found) in shared.items()}
        for slot in sorted(members.masked):
            peers = [peer for peer in members.near(slot) if peer != slot]
            self.stages[slot] = self._masked(slot, [(peer, letters[peer][slot]) for peer in peers])
        return self.stages

    def close(self, replies: Iterable[Message]) -> tuple[Mean, list[Message]]:
        """Return the weighted mean of the clients that stayed, and their replies by slot.

        Raises:
            PacketError: If too few clients stayed, or no sum can be had from what they sent; the
                reason is ``VALUES`` where a client is to blame.
        """
        total, counted = self.unmasked(replies)
        stage = next(iter(self.stages.values()))
        return to_mean(total, self.target, stage, len(counted)), counted

    def unmasked(self, replies: Iterable[Message]) -> tuple[Vector, list[Message]]:
        """Return the sum of the clients' integers, modulo the ring, and the replies in it.

        Raises:
            PacketError: If it cannot be had; the reason is ``VALUES`` where a client is to blame.
        """
        total, counted = self._added(replies)
        self.summed = tuple(sorted(counted))
        alive, near = set(counted), self._members.near
        self._need(len(alive), "masked updates")
        if not is_connected(self._members.graph, alive):
            raise PacketError(
                "drop-outs cut the round's clients in two that share no masks, and the sum of each "
                "part would be open; allow more neighbours",
                Reason.REPLY,
            )
        rows = {slot: [(one, b"") for one in near(slot) if one in alive] for slot in sorted(alive)}
        given = self._ask(UNMASK, rows, lambda slot, record: _read_given(record, near(slot)))
        self._members.unmask(total, alive, given)
        return total, [counted[slot] for slot in self.summed]

    def _ask(
        self,
        stage: str,
        rows: Mapping[int, Iterable[tuple[int, bytes]]],
        read: Callable[[int, ConfigRecord], Found],
    ) -> dict[int, Found]:
        """Send a stage to clients and return what `read` makes of each usable answer.

        The short messages are of the round's own type, so that the same mods see them.
        """
        sent = []
        for slot, data in rows.items():
            config = ConfigRecord({ROUND_KEY: self.target.terms.round})
            self._stage(stage, slot, data).attach(config)
            old, content = self._messages[slot], RecordDict({"config": config})
            sent.append(Message(content, old.dst_node_id, old.message_type, group_id=old.group_id))
        found: dict[int, Found] = {}
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            slot = self._slots.get(reply.metadata.src_node_id, -1)
            if slot not in rows or slot in found:
                continue
            try:
                found[slot] = read(slot, _record_of(reply))
            except PacketError as error:
                log_refused(slot, error)
        return dict(sorted(found.items()))

    def _stage(self, stage: str, slot: int, rows: Iterable[tuple[int, bytes]]) -> Stage:
        session, threshold = self._members.session.hex(), self._members.threshold
        return Stage(stage=stage, session=session, slot=slot, threshold=threshold, rows=join(rows))

    def _masked(self, slot: int, letters: Iterable[tuple[int, bytes]]) -> Stage:
        """Return what a client needs to mask: how numbers become integers, and its letters."""
        asked = self._settings
        return replace(
            self._stage(MASKED, slot, letters),
            range=float(asked.range),
            dense_range=float(asked.dense_range or asked.range),
            levels=asked.levels,
            width=self.ring.width,
            max_weight=float(asked.max_weight),
            weight=self.target.weight,
            norm=self.target.norm,
            metrics=asked.metrics,
        )

    def _read_shared(self, slot: int, record: ConfigRecord) -> tuple[bytes, dict[int, bytes]]:
        """Return what fixes the seed of a client's own mask, and a letter for each neighbour."""
        letters = _cut(record, keys.LETTER_BYTES, self._members.graph[slot])
        return answer_bytes(record, "commitment", keys.COMMITMENT_BYTES), letters

    def _added(self, replies: Iterable[Message]) -> tuple[Vector, dict[int, Message]]:
        """Return the sum of all sound sealed packets, and their messages by slot."""
        total, counted, came = self._shape.zeros(), dict[int, Message](), list(replies)
        names = metrics.usual(came, self._settings.metrics)
        for reply in came:
            slot = self._slots.get(reply.metadata.src_node_id, -1)
            try:
                if slot not in self.stages or slot in counted:
                    raise PacketError("nobody asked for this reply, or it came twice", Reason.REPLY)
                vector = self._opened(reply, self.stages[slot])
                metrics.check(reply, names)
                total.add(vector)
                counted[slot] = reply
            except PacketError as error:
                log_refused(slot, error)
        return total, counted

    def _opened(self, reply: Message, stage: Stage) -> Vector:
        records = list(_content(reply).array_records.values())
        if len(records) != 1:
            raise PacketError(
                f"a reply must hold one ArrayRecord, found {len(records)}", Reason.REPLY
            )
        target, shape = self.target, self._shape
        expected = SealedHeader.of(stage, target.terms, target.layout, self._survivors)
        return shape.read(expected.open(packet_of(records[0], SEALED_STYPE), shape.size))

    def _need(self, found: int, what: str) -> None:
        if found < self._least:
            raise PacketError(
                f"{found} of {len(self._messages)} clients sent {what}; secure aggregation needs "
                f"{self._least}",
                Reason.REPLY,
            )


def _content(reply: Message) -> RecordDict:
    if reply.has_error():
        raise PacketError(reply.error.reason or "it failed without a reason", Reason.REPLY)
    return reply.content


def _record_of(reply: Message) -> ConfigRecord:
    """Return the answer to a stage in a reply."""
    record = _content(reply).get(SECURE_KEY)
    if not isinstance(record, ConfigRecord):
        raise PacketError(
            "it did not answer a stage of secure aggregation; DarexMod must be its first mod",
            Reason.REPLY,
        )
    return record


def _read_keys(slot: int, record: ConfigRecord) -> bytes:
    """Return a client's two public keys."""
    found = answer_bytes(record, "keys", 2 * keys.PUBLIC_BYTES)
    for public in keys.halves(found):
        keys.check(public)
    return found


def _unique(public: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the keys of clients that have their own: others would stop their neighbours."""
    owners = Counter(half for both in public.values() for half in keys.halves(both))
    found = {}
    for slot, both in public.items():
        if any(owners[half] > 1 for half in keys.halves(both)):
            log_refused(slot, PacketError("its public keys are another's, too", Reason.VALUES))
        else:
            found[slot] = both
    return found


def _read_given(record: ConfigRecord, near: Sequence[int]) -> Given:
    """Return the shares in a client's last answer, and whose letters it could not read."""
    unread, shares = record.get(UNREAD, b""), _cut(record, SHARE_BYTES, near)
    if not isinstance(unread, bytes) or not set(found := rows_of(unread, 0)) <= set(near):
        raise PacketError("it complains of letters that it was not sent", Reason.VALUES)
    return Given(shares, frozenset(found))


def _cut(record: ConfigRecord, size: int, slots: Sequence[int]) -> dict[int, bytes]:
    """Return the shares in an answer, which are of one size, by slot."""
    data = answer_bytes(record, "shares", size * len(slots))
    return {slot: data[size * at : size * (at + 1)] for at, slot in enumerate(slots)}
