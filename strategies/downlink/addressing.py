"""Puts the model, or what a client lacks of it, into messages, and can take it out again."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from logging import WARNING
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log

from fl_darex.errors import PacketError
from fl_darex.flower.ledger import without_settings
from fl_darex.flower.model_note import DELIVERY_KEY, GREETING_KEY, ModelNote
from fl_darex.flower.records import arrays_in, configs_in

from ..sent import same
from .broadcast import Broadcast


class Setting(Protocol):
    """Something of ours that rides in a message's configuration, such as `Terms`."""

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write itself into a configuration."""


class Addressing:
    """Addresses each message to its own client.

    Args:
        broadcast: Decides what a client is sent of the model.

    Attributes:
        model: The model that messages stand for now.
    """

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self.model = ArrayRecord()
        self._known: dict[int, tuple[ArrayRecord, bool]] = {}  # records that were compared
        self._informed: set[int] = set()

    def present(self, model: ArrayRecord) -> None:
        """Say which model the next messages stand for."""
        self._informed, self._known = set(), {}
        if not same(model, self.model) or not self.model:
            self._broadcast.present(model)
            self.model = model

    def leave(self) -> None:
        """Say that the next messages carry other models, as they are."""
        self._informed, self._known = set(), {}

    def holds(self, record: ArrayRecord) -> bool:
        """Return whether a record is what clients can be brought to from what they hold."""
        return not self.model or same(record, self._broadcast.model)

    def is_model(self, record: ArrayRecord) -> bool:
        """Return whether a record is the model, or a copy of it: the same bits."""
        if id(record) not in self._known:
            self._known[id(record)] = (record, same(record, self.model))
        return self._known[id(record)][1]

    def informed(self, node: int) -> bool:
        """Return whether a client was sent the model, and not another one, since `present`."""
        return node in self._informed

    def question(self, config: ConfigRecord) -> RecordDict | None:
        """Return what new nodes are asked, with a run's settings; None: nothing."""
        asked = ConfigRecord(dict(config))
        self._broadcast.greet(asked)
        return RecordDict({"config": asked}) if GREETING_KEY in asked else None

    def address(self, message: Message, settings: Sequence[Setting]) -> None:
        """Give a message the content that its own client needs.

        Args:
            message: As the wrapped strategy made it; its content may be shared with others.
            settings: What the reply must look like; none: as the app leaves it.
        """
        node = message.metadata.dst_node_id
        if self._places(message.content):
            self._informed.add(node)
        message.content = self._settled(message.content, *self._broadcast.content(node), settings)

    def again(self, message: Message, client: int, settings: Sequence[Setting]) -> Message:
        """Return a message with the whole model, for a client that lacks what it was sent."""
        log(WARNING, "client %s lacks an earlier model and is sent the whole one", client)
        old = message.metadata
        self._broadcast.lacks(old.dst_node_id)
        whole, note = self._broadcast.whole()
        content = self._settled(self.plain(message.content), whole, note, settings)
        return Message(
            content, old.dst_node_id, old.message_type, ttl=old.ttl, group_id=old.group_id
        )

    def plain(self, content: RecordDict) -> RecordDict:
        """Return what a content would be without fl-darex: the model, no settings of ours."""
        plain = without_settings(content)
        if any(DELIVERY_KEY in config for config in configs_in(content).values()):
            plain[_record_of(content) or next(iter(arrays_in(content)))] = self.model
        return plain

    def place(self, content: RecordDict) -> str | None:
        """Return which ArrayRecord of a content is the model, ours or the only one; None: none."""
        places, records = self._places(content), list(arrays_in(content))
        return next(iter([*places, *records[:1]]), None) if places or len(records) == 1 else None

    def _places(self, content: RecordDict) -> list[str]:
        records = arrays_in(content)
        found = [name for name, record in records.items() if self.is_model(record)]
        # Others may hold the same numbers, such as zeros: the record itself comes first.
        return sorted(found, key=lambda name: (records[name] is not self.model, name != "arrays"))

    def _settled(
        self,
        content: RecordDict,
        carried: ArrayRecord,
        note: ModelNote | None,
        asked: Sequence[Setting],
    ) -> RecordDict:
        """Return a copy of a content with what takes the model's place, and our settings."""
        copied = RecordDict(dict(content.items()))
        places = self._places(content)
        if note is not None and places:
            copied[places[0]] = carried
            note = replace(note, record=places[0] if len(arrays_in(content)) > 1 else "")
        else:
            note = None  # another model than ours goes as it is
        settings = [*([] if note is None else [note]), *asked]
        if settings:
            name = next(iter(configs_in(content)), "config")
            config = ConfigRecord(dict(configs_in(content).get(name, ConfigRecord())))
            for one in settings:
                one.attach(config)
            copied[name] = config
        return copied


def _record_of(content: RecordDict) -> str:
    """Return which ArrayRecord a note says that it stands for; empty: the only one."""
    for config in configs_in(content).values():
        with suppress(PacketError):  # a grid may have changed it on the way
            if (note := ModelNote.detach(dict(config))) is not None:
                return note.record
    return ""
