"""The server half of secure aggregation: one round, from public keys to the unmasked sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import SystemRandom
from secrets import token_bytes
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.ledger import ROUND_KEY
from fl_darex.secagg import SecureAggregation, keys
from fl_darex.secagg.graph import is_connected, seat, staying
from fl_darex.secagg.messages import KEYS, MASKED, SHARES, UNMASK, Stage, join
from fl_darex.secagg.numbers import Mean, Scale, shape_of, to_mean
from fl_darex.secagg.sealed_packet import MaskedHeader, masked_of, open_masked
from fl_darex.secagg.settings import LEAST_CLIENTS
from fl_darex.secagg.unmask import Members, remove_masks
from fl_darex.secagg.vector import Vector

from ..replies import log_refused
from .answers import (
    Shared,
    letters_reader,
    read_keys,
    record_of,
    shares_reader,
    unique,
)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Target:
    """What the clients' masked packets must be, and what their sum stands for.

    Attributes:
        base: The tensors that they were sent.
        layout: Their layout.
        version: Version of that model, 8 bytes.
        round: The federated round.
        survivors: How many entries the round's mask keeps.
        norm: Largest L2 norm of an update, survivors over q and dense tensors together; 0: any.
    """

    base: Mapping[str, NDArray[Any]]
    layout: Layout
    version: bytes
    round: int
    survivors: int
    norm: float = 0.0


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
        weight: Name of the metric that is a client's weight; empty: all count the same.
        timeout: Seconds to wait for short answers, where the settings do not say.

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
        weight: str,
        timeout: float,
    ) -> None:
        self._settings, self._grid, self._target = settings, grid, target
        self._weight, self._timeout = weight, settings.timeout or timeout
        self._messages = {slot_of[m.metadata.dst_node_id]: m.metadata for m in messages}
        self._slots = {sent.dst_node_id: slot for slot, sent in self._messages.items()}
        if len(messages) < LEAST_CLIENTS:
            raise PacketError(
                f"secure aggregation needs {LEAST_CLIENTS} clients in a round, got {len(messages)}",
                Reason.REPLY,
            )
        self.ring = settings.ring_for(len(messages))
        with _refusing_the_round():
            self._least = settings.least(len(messages))
        self._shape = shape_of(target.layout, self.ring, target.survivors)
        self._members = Members(session=token_bytes(keys.SESSION_BYTES))

    def open(self) -> dict[int, Stage]:
        """Exchange keys and shares; return, by slot, what goes with the model to each client.

        Raises:
            PacketError: If too few clients answer.
        """
        members = self._members
        members.public = unique(self._ask(KEYS, dict.fromkeys(self._messages, b""), read_keys))
        self._need(len(members.public), "keys")
        degree = self._settings.degree(len(members.public))
        members.graph = seat(sorted(members.public), degree, SystemRandom())
        with _refusing_the_round():
            members.threshold = self._settings.needed(len(members.public))
        rows = {
            slot: join((peer, members.public[peer]) for peer in near)
            for slot, near in members.graph.items()
        }
        shared = self._ask(SHARES, rows, letters_reader(members.graph))
        members.commitments = {slot: one.commitment for slot, one in shared.items()}
        members.masked = staying(members.graph, shared, members.threshold)
        self._need(len(shared), "shares")
        self._need(len(members.masked), "shares to enough others that did")
        return {slot: self._masked(slot, shared) for slot in sorted(members.masked)}

    def close(self, replies: Iterable[Message]) -> tuple[Mean, list[Message]]:
        """Return the weighted mean of the clients that stayed, and their replies by slot.

        Raises:
            PacketError: If too few clients stayed, or no sum can be had from what they sent.
        """
        total, counted = self.unmasked(replies)
        target = self._target
        mean = to_mean(total, target.base, target.layout, self._scale(), len(counted))
        return mean, counted

    def unmasked(self, replies: Iterable[Message]) -> tuple[Vector, list[Message]]:
        """Return the sum of the clients' integers, modulo the ring, and the replies in it."""
        total, counted = self._added(replies)
        alive = set(counted)
        self._need(len(alive), "masked updates")
        if not is_connected(self._members.graph, alive):
            raise PacketError(
                "drop-outs cut the round's clients in two that share no masks, and the sum of each "
                "part would be open; allow more neighbours",
                Reason.REPLY,
            )
        rows = {
            slot: join((one, b"") for one in self._members.near(slot) if one in alive)
            for slot in sorted(alive)
        }
        given = self._ask(UNMASK, rows, shares_reader(self._members.near))
        remove_masks(total, self._members, alive, given)
        return total, [counted[slot] for slot in sorted(counted)]

    def _ask(
        self,
        stage: str,
        rows: Mapping[int, bytes],
        read: Callable[[int, ConfigRecord], Found],
    ) -> dict[int, Found]:
        """Send a stage to clients and return what `read` makes of each usable answer."""
        sent = [self._message(stage, slot, data) for slot, data in rows.items()]
        found: dict[int, Found] = {}
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            slot = self._slots.get(reply.metadata.src_node_id, -1)
            if slot not in rows or slot in found:
                continue
            try:
                found[slot] = read(slot, record_of(reply))
            except PacketError as error:
                log_refused(slot, error)
        return dict(sorted(found.items()))

    def _message(self, stage: str, slot: int, rows: bytes) -> Message:
        """Return a short message, of the round's own type, so that the same mods see it."""
        config = ConfigRecord({ROUND_KEY: self._target.round})
        self._stage(stage, slot, rows).attach(config)
        old, content = self._messages[slot], RecordDict({"config": config})
        return Message(content, old.dst_node_id, old.message_type, group_id=old.group_id)

    def _masked(self, slot: int, shared: Mapping[int, Shared]) -> Stage:
        """Return what a client needs to mask: how numbers become integers, and its letters."""
        scale, near = self._scale(), self._members.near(slot)
        return self._stage(
            MASKED,
            slot,
            join((peer, shared[peer].letters[slot]) for peer in near if peer != slot),
            range=scale.range,
            dense_range=scale.dense_range,
            levels=scale.levels,
            width=self.ring.width,
            max_weight=scale.max_weight,
            weight=self._weight,
            metrics=self._settings.metrics,
            norm=self._target.norm,
        )

    def _stage(self, stage: str, slot: int, rows: bytes, **more: Any) -> Stage:
        session, threshold = self._members.session.hex(), self._members.threshold
        return Stage(
            stage=stage, session=session, slot=slot, threshold=threshold, rows=rows, **more
        )

    def _scale(self) -> Scale:
        asked = self._settings
        return Scale(
            range=float(asked.range),
            dense_range=float(asked.dense_range or asked.range),
            levels=asked.levels,
            max_weight=float(asked.max_weight),
        )

    def _added(self, replies: Iterable[Message]) -> tuple[Vector, dict[int, Message]]:
        """Return the sum of all sound masked packets, and their messages by slot."""
        total, counted = self._shape.zeros(), dict[int, Message]()
        for reply in replies:
            slot = self._slots.get(reply.metadata.src_node_id, -1)
            try:
                if slot not in self._members.masked or slot in counted:
                    raise PacketError("nobody asked for this reply, or it came twice", Reason.REPLY)
                total.add(self._opened(reply, slot))
                counted[slot] = reply
            except PacketError as error:
                log_refused(slot, error)
        return total, counted

    def _opened(self, reply: Message, slot: int) -> Vector:
        if reply.has_error():
            raise PacketError(reply.error.reason or "it failed without a reason", Reason.REPLY)
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            raise PacketError(
                f"a reply must hold one ArrayRecord, found {len(records)}", Reason.REPLY
            )
        target = self._target
        expected = MaskedHeader(
            width=self.ring.width,
            session=self._members.session,
            round=target.round,
            slot=slot,
            fingerprint=target.layout.fingerprint,
            base=target.version,
            survivors=target.survivors,
        )
        return self._shape.read(open_masked(masked_of(records[0]), expected, self._shape.size))

    def _need(self, found: int, what: str) -> None:
        if found < self._least:
            raise PacketError(
                f"{found} of {len(self._messages)} clients sent {what}; secure aggregation needs "
                f"{self._least}",
                Reason.REPLY,
            )


@contextmanager
def _refusing_the_round() -> Iterator[None]:
    """Turn settings that do not fit the clients of a round into a refusal of that round."""
    try:
        yield
    except ValueError as error:
        raise PacketError(str(error), Reason.REPLY) from None
