"""What clients answer to the stages of secure aggregation, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg import keys
from fl_darex.secagg.messages import SECURE_KEY, answer_bytes
from fl_darex.secagg.shares import SHARE_BYTES

from ..replies import log_refused


@dataclass(frozen=True)
class Shared:
    """One client's answer to ``shares``.

    Attributes:
        commitment: Fixes the seed of its own mask.
        letters: One for each neighbour, by slot.
    """

    commitment: bytes
    letters: Mapping[int, bytes]


def record_of(reply: Message) -> ConfigRecord:
    """Return the record of ours in a reply.

    Raises:
        PacketError: If there is none.
    """
    if reply.has_error():
        raise PacketError(reply.error.reason or "it failed without a reason", Reason.REPLY)
    record = reply.content.get(SECURE_KEY)
    if not isinstance(record, ConfigRecord):
        raise PacketError(
            "it did not answer a stage of secure aggregation; DarexMod must be its first mod",
            Reason.REPLY,
        )
    return record


def read_keys(slot: int, record: ConfigRecord) -> bytes:
    """Return a client's two public keys."""
    found, size = answer_bytes(record, "keys", 2 * keys.PUBLIC_BYTES), keys.PUBLIC_BYTES
    for public in (found[:size], found[size:]):
        keys.check(public)
    return found


def unique(public: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the keys of clients that have their own: others would stop their neighbours."""
    size = keys.PUBLIC_BYTES
    halves = {slot: (both[:size], both[size:]) for slot, both in public.items()}
    owners = Counter(half for pair in halves.values() for half in pair)
    copied = {slot for slot, pair in halves.items() if max(owners[half] for half in pair) > 1}
    for slot in sorted(copied):
        log_refused(slot, PacketError("its public keys are another's, too", Reason.VALUES))
    return {slot: both for slot, both in public.items() if slot not in copied}


def letters_reader(
    graph: Mapping[int, Sequence[int]],
) -> Callable[[int, ConfigRecord], Shared]:
    """Return a function that reads an answer to ``shares``."""

    def read(slot: int, record: ConfigRecord) -> Shared:
        letters = _cut(record, keys.LETTER_BYTES, graph[slot])
        return Shared(answer_bytes(record, "commitment", keys.COMMITMENT_BYTES), letters)

    return read


def shares_reader(
    near: Callable[[int], Sequence[int]],
) -> Callable[[int, ConfigRecord], dict[int, bytes]]:
    """Return a function that reads an answer to ``unmask``."""
    return lambda slot, record: _cut(record, SHARE_BYTES, near(slot))


def _cut(record: ConfigRecord, size: int, slots: Sequence[int]) -> dict[int, bytes]:
    data = answer_bytes(record, "shares", size * len(slots))
    return {slot: data[size * at : size * (at + 1)] for at, slot in enumerate(slots)}
