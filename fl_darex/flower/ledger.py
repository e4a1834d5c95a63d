"""The byte ledger: what each message weighs on the wire, beside its dense counterpart.

Messages are counted where they cross the Grid, so the numbers are the same in simulation and in
a deployment, and nothing on a client has to be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fl_darex.compression.terms import CONFIG_KEY
from fl_darex.errors import PacketError
from fl_darex.flower.entry import Entry as Entry
from fl_darex.flower.entry import from_columns, to_columns
from fl_darex.flower.grids import GridView, exchange, stranger
from fl_darex.flower.model_note import MISSING, ModelNote
from fl_darex.flower.private import ErrorCode, with_content
from fl_darex.flower.records import PACKET_STYPE, SEALED_STYPE, arrays_in, configs_in, packet_of
from fl_darex.flower.roster import HANDSHAKE, is_handshake
from fl_darex.flower.sizes import (
    Chunks,
    RecordInfo,
    describe,
    message_bytes,
    trained_info,
)
from fl_darex.secagg.messages import SECURE_KEY

LACKING = "lacking"
SECURE = "secure"
ROUND_KEY = "server-round"

# Error replies that SuperLink, or Flower's grid, makes up itself where a client is gone.
_NOBODY_SENT = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}


class Ledger:
    """All exchanges of a run, in the order in which they were started.

    Those of rounds that are over are kept as columns of numbers: a run may have millions.

    Attributes:
        partition_of: Partition by node id, as far as it is known.
    """

    def __init__(self) -> None:
        self.partition_of: dict[int, int] = {}
        self._over: list[dict[str, Any]] = []
        self._recent: list[Entry] = []

    def __repr__(self) -> str:
        exchanges = sum(len(columns["round"]) for columns in self._over) + len(self._recent)
        return f"Ledger(<{exchanges:,} entries>)"

    @property
    def entries(self) -> list[Entry]:
        """All of them."""
        return [*chain.from_iterable(map(from_columns, self._over)), *self._recent]

    def add(self, entry: Entry) -> None:
        """Take an exchange, which may still change until `fold`."""
        self._recent.append(entry)

    def fold(self, round_: int) -> None:
        """Take what there is as it is for good, if it is all of earlier rounds than this one."""
        if self._recent and round_ > max(entry.round for entry in self._recent):
            self._over.append(to_columns(self._recent))
            self._recent = []

    def name_clients(self) -> None:
        """Put partitions in place of the node ids of exchanges before the handshake was over."""
        for entry in self._recent:
            if entry.kind == HANDSHAKE:
                entry.client = self.partition_of.get(entry.client, entry.client)

    def state(self) -> dict[str, Any]:
        """Return all entries, by column; who is which partition is the roster's."""
        return {"over": [*self._over, to_columns(self._recent)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Hold the entries that `state` said.

        Raises:
            KeyError: If a part of them is missing.
        """
        self._over, self._recent = [*state["over"]], []
        _ = self.entries  # now, and not where they are looked at first

    def of_round(self, round_: int) -> list[Entry]:
        """Return the exchanges of one round (0: before the first)."""
        over = [columns for columns in self._over if (columns["round"] == round_).any()]
        found = chain(chain.from_iterable(map(from_columns, over)), self._recent)
        return [entry for entry in found if entry.round == round_]


class LedgerGrid(GridView):
    """A Grid that counts every message and passes it on.

    Args:
        grid: Any Flower Grid.
        ledger: Where the entries go.
        on_reply: Called with the entry of each reply as it arrives.
        plain: Returns what a content would be without fl-darex; default: without its settings.
    """

    def __init__(
        self,
        grid: Grid,
        ledger: Ledger,
        on_reply: Callable[[Entry], None] | None = None,
        plain: Callable[[RecordDict], RecordDict] | None = None,
    ) -> None:
        super().__init__(grid)
        self._ledger = ledger
        self._on_reply = on_reply
        self._plain = plain or without_settings
        self._open: dict[str, tuple[Entry, dict[str, RecordInfo], Metadata]] = {}
        # The model of a round is one ArrayRecord in many messages: describe it once.
        self._described: dict[int, tuple[ArrayRecord, RecordInfo, RecordInfo]] = {}
        self._chunks = Chunks()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count and push messages."""
        listed = list(messages)
        ids = list(self.grid.push_messages(listed))
        if listed and not self._open:
            self._ledger.fold(_round_of(listed[0].content))
        for message in listed:
            entry, dense = self._sent(message)
            self._ledger.add(entry)
            self._open[message.metadata.message_id] = (entry, dense, message.metadata)
        self._described.clear()
        self._chunks = Chunks()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull and count replies."""
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            self._received(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds."""
        replies, late = exchange(self, messages, timeout, self.pull_interval)
        self.forget(late)
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Count no replies to these messages: what comes after the timeout belongs to no round."""
        super().forget(keys := list(message_ids))
        for key in keys:
            self._open.pop(key, None)

    def _sent(self, message: Message) -> tuple[Entry, dict[str, RecordInfo]]:
        node = message.metadata.dst_node_id
        plain = with_content(message, self._plain(message.content))
        sent, whole = self._describe(message.content), self._describe(plain.content)
        entry = Entry(
            round=_round_of(message.content),
            client=self._ledger.partition_of.get(node, node),
            kind=_kind_of(message),
            down_bytes=message_bytes(message, [info for info, _ in sent.values()]),
        )
        if entry.kind != SECURE:
            infos = {name: info for name, (info, _) in whole.items()}
            entry.dense_down_bytes = message_bytes(plain, [*infos.values()])
            if entry.round <= 1 and (name := _held(message.content)) in infos:
                infos[name] = sent[name][0]  # what the client lacks of it, most often nothing
                entry.held_bytes = entry.dense_down_bytes - message_bytes(plain, [*infos.values()])
        return entry, {name: trained for name, (_, trained) in whole.items()}

    def _received(self, reply: Message) -> None:
        key = reply.metadata.reply_to_message_id
        if key not in self._open or stranger(reply, self._open[key][2]):
            return  # nobody waits for it
        entry, sent_dense, _ = self._open.pop(key)
        entry.failed = reply.has_error()
        if entry.failed and reply.error.code in _NOBODY_SENT:
            return self._tell(entry)
        entry.up_bytes = message_bytes(reply)
        entry.dense_up_bytes = 0 if entry.kind == SECURE else entry.up_bytes
        if reply.has_content():
            if any(map(_stands_for_model, arrays_in(reply.content).values())):
                entry.dense_up_bytes = message_bytes(reply, _whole(reply.content, sent_dense))
            if MISSING in reply.content:
                entry.kind, entry.dense_up_bytes, entry.dense_down_bytes = LACKING, 0, 0
                entry.held_bytes = 0
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        if self._on_reply is not None:
            self._on_reply(entry)

    def _describe(self, content: RecordDict) -> dict[str, tuple[RecordInfo, RecordInfo]]:
        """Return each array record as it is, and as it would come back whole after training."""
        found = {}
        for name, record in arrays_in(content).items():
            if id(record) not in self._described:
                info = describe(record, self._chunks)
                self._described[id(record)] = (record, info, trained_info(record, info))
            found[name] = self._described[id(record)][1:]
        return found


def _kind_of(message: Message) -> str:
    kind, content = message.metadata.message_type, message.content
    if not arrays_in(content) and any(SECURE_KEY in c for c in configs_in(content).values()):
        return SECURE
    return HANDSHAKE if is_handshake(message) else kind


def _held(content: RecordDict) -> str:
    """Return the name of the ArrayRecord whose model the client holds already; empty: none."""
    for config in configs_in(content).values():
        with suppress(PacketError):  # a grid may have changed it on the way
            note = ModelNote.detach(dict(config))
            if note is not None and note.start == note.model:
                return note.record or next(iter(arrays_in(content)), "")
    return ""


def _stands_for_model(record: ArrayRecord) -> bool:
    return any(packet_of(record, kind) is not None for kind in (PACKET_STYPE, SEALED_STYPE))


def _whole(content: RecordDict, sent: dict[str, RecordInfo]) -> list[RecordInfo]:
    """Return a reply's records with the model, as it would come back, in the packet's place."""
    chunks, first = Chunks(), next(iter(sent.values()), None)
    found = []
    for name, record in arrays_in(content).items():
        whole = sent.get(name, first) if _stands_for_model(record) else None
        found.append(whole or describe(record, chunks))
    return found


def _round_of(content: RecordDict) -> int:
    for config in configs_in(content).values():
        if isinstance(value := config.get(ROUND_KEY), int):
            return value
    return 0


def without_settings(content: RecordDict) -> RecordDict:
    """Return a content without the settings of fl-darex in it."""
    plain = RecordDict()
    for name, record in content.items():
        if isinstance(record, ConfigRecord) and any(map(_is_ours, record)):
            record = ConfigRecord({k: v for k, v in record.items() if not _is_ours(k)})
        plain[name] = record
    return plain


def _is_ours(key: str) -> bool:
    return key == CONFIG_KEY or key.startswith(f"{CONFIG_KEY}.")
