"""Who is asked for what: each client's terms, and the tensors that its reply is a change of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.common.logger import log

from fl_darex.compression.choices import MaskChoice
from fl_darex.compression.terms import Terms
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.flower.records import arrays_in, view_arrays
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
            arrays_in(content)[place]
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

    def draw(self, mask: MaskChoice) -> None:
        """Ask for masks of a kind from now on; never ``"auto"``, which clients do not know."""
        self._uplink = replace(self._uplink, mask=mask)

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
        known: list[tuple[ArrayRecord, Sent, Uplink]] = []
        if not counted:  # later models may have lost a tensor
            Layout.of(view_arrays(self._addressing.model), self._uplink.dense)
        found = {}
        for message in messages:
            records, slot = arrays_in(message.content), self._slot_of(message)
            place = self._addressing.place(message.content)
            sent, uplink = NOTHING, self._uplink
            if place is not None:
                sent, uplink = self._sent(records[place], known)
            ours = place is not None and self._addressing.is_model(records[place])
            terms = Terms(
                uplink,
                round_,
                slot,
                self._broadcast.version if ours else NO_VERSION,
                place if place is not None and len(records) > 1 else "",
                counted.get(slot, 0) if self._uplink.how.remembers else 0,
            )
            told = place is not None and self._uplink.how.packs
            found[message.metadata.dst_node_id] = Asked(message, terms, sent, told)
        return found

    def _sent(
        self, record: ArrayRecord, known: list[tuple[ArrayRecord, Sent, Uplink]]
    ) -> tuple[Sent, Uplink]:
        """Return one object for all records with the same tensors, and what is asked of these."""
        for other, sent, uplink in known:
            if same(other, record):
                return sent, uplink
        arrays = view_arrays(record)
        uplink = self._uplink.fitted(arrays)
        sent = Sent(arrays, uplink.layout(arrays))
        known.append((record, sent, uplink))
        return sent, uplink

    def state(self) -> dict[str, Any]:
        """Return which tensors are sent whole."""
        return {"dense": self._uplink.dense}

    def restore(self, state: dict[str, Any]) -> None:
        """Ask for these whole."""
        self._uplink = replace(self._uplink, dense=state["dense"])

    def send_whole(self, names: Iterable[str]) -> None:
        """Ask for the whole change of more tensors from the next round on."""
        whole = dict.fromkeys([*self._uplink.dense, *names])
        self._uplink = replace(self._uplink, dense=tuple(whole))
