"""`DarexMod`: the client half, as a Flower mod."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log
from numpy.typing import ArrayLike

from fl_darex.compressors import Local, compressor
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.survivors import Q, Survivors
from fl_darex.wire.delivery import DIGESTS_KEY, HELD_KEY, MISSING, Delivery, Greeting
from fl_darex.wire.records import packet_record, to_arrays, view_arrays
from fl_darex.wire.terms import Terms
from fl_darex.wire.versions import content_version

from .receiver import Base, Receiver

Norms = Callable[[Message, Context], Mapping[str, ArrayLike]]
"""Returns the norm of each input of each linear layer, by the name of its weight."""

Search = Callable[[Message, Context, Survivors, str], Q]
"""Returns q for survivors, by the rule that is named: one number, or one per pruned tensor."""


class DarexMod:
    """Turns the arrays that a ClientApp returns into one packet of their pruned change.

    ``ClientApp(mods=[DarexMod()])``. It takes its settings from the message, so a client needs
    none, and passes through every message whose server does not ask for packets. Where the server
    sends what changed since the last model, the mod puts the model together before the app sees
    it. List it first: the other mods and the app then see exactly what they would see without it.

    Args:
        base: Returns the tensors that this client holds before round 1, such as a pre-trained
            model, as NumPy arrays by name; called as ``base(message, context)``. Tensors that are
            equal to the server's, bit for bit, are then never sent. It should return the same
            mapping each time, which is hashed once per process.
        norms: Returns what WANDA weighs changes by, for the model that the app has just trained:
            ``{name: inputs.norm}`` of ``fl_darex.activations.layer_inputs``. Called as
            ``norms(message, context)``, and only where the server asks for WANDA.
        search: Returns the q of this client's survivors, where the server lets clients choose it;
            called as ``search(message, context, survivors, rule)``.
    """

    def __init__(
        self,
        base: Base | None = None,
        *,
        norms: Norms | None = None,
        search: Search | None = None,
    ) -> None:
        self._receiver = Receiver(base)
        self._norms, self._search = norms, search

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Bring the model, strip our settings, run the app, replace its arrays by a packet.

        Raises:
            PacketError: If the server's settings or packets are not understood; Flower sends it
                to the server.
            DeltaError: If the app returns other tensors than it was sent, or NaN.
        """
        config = _own_config(message)
        if greeting := Greeting.detach(config):
            return self._greet(greeting, message, context, call_next)
        delivery, terms = Delivery.detach(config), Terms.detach(config)
        if delivery is not None:
            name, record = _single(message.content, "message")
            model = self._receiver.receive(record, delivery, message, context)
            if model is None:
                lacking = ConfigRecord({"version": delivery.start})
                return Message(RecordDict({MISSING: lacking}), reply_to=message)
            message.content[name] = model
        if terms is None:
            return call_next(message, context)
        local = Local(
            norms=self._norms and partial(self._norms, message, context),
            search=self._search and partial(self._search, message, context),
        )
        return _compressed(terms, local, message, context, call_next)

    def _greet(
        self, greeting: Greeting, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        """Add to the app's answer what this client holds."""
        held = self._receiver.held(greeting.run, context)
        digests: dict[str, bytes] = {}
        if held is None:
            try:
                digests = self._receiver.digests(message, context)
            except Exception as error:  # the app's own: it must not keep the client out
                log(WARNING, "the base model cannot be had: %s: %s", type(error).__name__, error)
            if content_version(digests).hex() == greeting.first:
                held, digests = content_version(digests), {}
        reply = call_next(message, context)
        if reply.has_content():
            reply.content["darex"] = ConfigRecord(
                {HELD_KEY: held.hex() if held else "", DIGESTS_KEY: b"".join(digests.values())}
            )
        return reply


def _compressed(
    terms: Terms,
    local: Local,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
) -> Message:
    method = compressor(terms.method)
    name, sent = _single(message.content, "message")
    base = view_arrays(sent)
    # The app may empty the record that it was given.
    message.content[name] = ArrayRecord(dict(sent))
    reply = call_next(message, context)
    if not reply.has_content() or not reply.content.array_records:
        return reply
    name, record = _single(reply.content, "reply")
    packet = method.compress(Delta(to_arrays(record), base, terms.dense), terms, local)
    if packet is not None:
        reply.content[name] = packet_record(packet)
    return reply


def _own_config(message: Message) -> ConfigRecord:
    """Return a copy of the message's configuration that has settings of ours, put in its place.

    In a simulation records may be shared between clients.
    """
    for name, config in list(message.content.config_records.items()):
        if any(key.startswith("darex") for key in config):
            copy = ConfigRecord(dict(config))
            message.content[name] = copy
            return copy
    return ConfigRecord()


def _single(content: RecordDict, what: str) -> tuple[str, ArrayRecord]:
    records = list(content.array_records.items())
    if len(records) != 1:
        raise DeltaError(f"the {what} must hold one ArrayRecord, found {len(records)}")
    return records[0]
