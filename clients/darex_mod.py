"""`DarexMod`: the client half, as a Flower mod."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl_darex.compressors import compressor
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.wire.records import packet_record, to_arrays
from fl_darex.wire.terms import CONFIG_KEY, Terms


class DarexMod:
    """Turns the arrays that a ClientApp returns into one packet of their pruned change.

    ``ClientApp(mods=[DarexMod()])``. It takes its settings from the message, so a client needs
    none, and passes through every message whose server does not ask for packets. List it first:
    the other mods and the app then see exactly what they would see without it.
    """

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Strip the terms, run the app, replace the reply's arrays by a packet.

        Raises:
            PacketError: If the server's terms are not understood; Flower sends it to the server.
            DeltaError: If the app returns other tensors than it was sent, or NaN.
        """
        terms = _take_terms(message)
        if terms is None:
            return call_next(message, context)
        method = compressor(terms.method)
        sent = _single(message.content, "message")
        base = to_arrays(sent[1])
        # The app may empty the record that it was given.
        message.content[sent[0]] = ArrayRecord(dict(sent[1]))
        reply = call_next(message, context)
        if not reply.has_content() or not reply.content.array_records:
            return reply
        name, record = _single(reply.content, "reply")
        packet = method.compress(Delta(to_arrays(record), base, terms.dense), terms)
        if packet is not None:
            reply.content[name] = packet_record(packet)
        return reply


def _take_terms(message: Message) -> Terms | None:
    for name, config in list(message.content.config_records.items()):
        if CONFIG_KEY in config:
            # In a simulation records may be shared between clients: change a copy.
            plain = ConfigRecord(dict(config))
            message.content[name] = plain
            return Terms.detach(plain)
    return None


def _single(content: RecordDict, what: str) -> tuple[str, ArrayRecord]:
    records = list(content.array_records.items())
    if len(records) != 1:
        raise DeltaError(f"the {what} must hold one ArrayRecord, found {len(records)}")
    return records[0]
