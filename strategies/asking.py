"""Who is asked for what: each client's terms, and the tensors that its reply is a change of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import WARNING

from flwr.app import ArrayRecord, Message
from flwr.common.logger import log

from fl_darex.compression.terms import Terms
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.flower.records import view_arrays
from fl_darex.wire.header import NO_VERSION

from .downlink.addressing import Addressing
from .downlink.broadcast import Broadcast
from .sent import NOTHING, Asked, Sent, same


class Asking:
    """Reads from a strategy's messages what their replies will be.

    Args:
        uplink: What is asked of all.
        broadcast: Knows the model's version.
        addressing: Knows which record is the model.
        slot_of: Returns the partition of the client that a message goes to.
        name: What the strategy is called.
    """

    def __init__(
        self,
        uplink: Uplink,
        broadcast: Broadcast,
        addressing: Addressing,
        slot_of: Callable[[Message], int],
        name: str,
    ) -> None:
        self._uplink, self._broadcast, self._addressing = uplink, broadcast, addressing
        self._slot_of, self._name, self._followed = slot_of, name, False

    def follow(self, messages: Iterable[Message]) -> None:
        """Make the model of all messages the run's, where it is not the one that was given.

        It may have looked ahead, or added noise: updates are changes of what clients have.
        """
        contents = [message.content for message in messages]
        places = [self._addressing.place(content) for content in contents]
        records = [
            content.array_records[place]
            for content, place in zip(contents, places, strict=True)
            if place is not None
        ]
        if not records or any(map(self._addressing.is_model, records)):
            return
        if all(same(record, records[0]) for record in records):
            if not self._followed:
                text = "%s sends another model than it is given; it goes to clients whole"
                log(WARNING, text, self._name)
            self._followed = True
            self._addressing.present(records[0])

    def of(
        self, messages: Iterable[Message], round_: int, counted: Mapping[int, int]
    ) -> dict[int, Asked]:
        """Return what each node is asked for.

        Args:
            messages: The round's, as the strategy made them.
            round_: The federated round.
            counted: The last round in which each partition's reply counted.

        Raises:
            DeltaError: If a tensor that is to be sent whole is not there.
        """
        known: list[tuple[ArrayRecord, Sent]] = []
        if not counted:  # later models may have lost a tensor
            Layout.of(view_arrays(self._addressing.model), self._uplink.dense)
        found = {}
        for message in messages:
            records, slot = message.content.array_records, self._slot_of(message)
            place = self._addressing.place(message.content)
            sent = NOTHING if place is None else self._sent(records[place], known)
            ours = place is not None and self._addressing.is_model(records[place])
            terms = Terms(
                self._uplink,
                round_,
                slot,
                self._broadcast.version if ours else NO_VERSION,
                place if place is not None and len(records) > 1 else "",
                counted.get(slot, 0) if self._uplink.how.remembers else 0,
            )
            told = place is not None and self._uplink.how.packs
            found[message.metadata.dst_node_id] = Asked(message, terms, sent, told)
        return found

    def _sent(self, record: ArrayRecord, known: list[tuple[ArrayRecord, Sent]]) -> Sent:
        """Return one object for all records with the same tensors."""
        for other, sent in known:
            if same(other, record):
                return sent
        known.append((record, Sent.of(record, self._uplink.dense)))
        return known[-1][1]
