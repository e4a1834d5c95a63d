"""`DarexMod`: the client half, as a Flower mod."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from logging import WARNING
from os import PathLike
from pathlib import Path
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log
from numpy.typing import ArrayLike

from fl_darex import checks
from fl_darex.change import Arrays
from fl_darex.compression.method import Local, Method
from fl_darex.compression.methods import METHODS
from fl_darex.compression.terms import Terms
from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Delta, restructured
from fl_darex.errors import ConfigError, DeltaError, PacketError, Reason
from fl_darex.files.tensors import open_tensors, read_tensors
from fl_darex.flower import roster as handshake
from fl_darex.flower.model_note import DIGESTS_KEY, HELD_KEY, MISSING, Greeting, ModelNote
from fl_darex.flower.records import (
    arrays_in,
    configs_in,
    model_among,
    packet_record,
    view_arrays,
)
from fl_darex.secagg.messages import MASKED, SECURE_KEY, Stage
from fl_darex.survivors import Q, Survivors
from fl_darex.ties import tie, write_ties
from fl_darex.wire.codings import CODINGS, Coding
from fl_darex.wire.reader import read_packet
from fl_darex.wire.versions import content_version

from .memory import Memory
from .receiver import Base, Receiver
from .secure import answer, hide
from .told import Told, check_on_mask, telling

Norms = Callable[[Message, Context], Mapping[str, ArrayLike]]
"""Returns the norm of each input of each linear layer, by the name of its weight."""

Search = Callable[[Message, Context, Survivors, str], Q]
"""Returns q for survivors, by the rule that is named: one number, or one per pruned tensor."""

Row = TypeVar("Row", Method, Coding)

_IN_THE_CLEAR = (
    "the server asks for an update in the clear, and this client has DarexMod(secure_only=True): "
    "give the server DarexStrategy(secure=...)"
)


class DarexMod:
    """Turns the arrays that a ClientApp returns into one packet of their pruned change.

    ``ClientApp(mods=[DarexMod()])``. It takes its settings from the message, so a client needs
    none, and passes through every message whose server does not ask for packets. Where the server
    sends what changed since the last model, the mod puts the model together before the app sees
    it. List it first: the other mods and the app then see exactly what they would see without it.
    Metrics, settings and ArrayRecords beside the model's pass through, both ways.

    Args:
        base: The tensors that this client holds before round 1, such as a pre-trained model.
            Tensors that are equal to the server's, bit for bit, are then never sent. A path: a
            ``.safetensors`` or ``.npz`` file, or a folder of ``.safetensors`` files such as
            ``save_pretrained`` writes. Or a function, called as ``base(message, context)``, that
            returns NumPy arrays by name; it should return the same mapping each time, which is
            hashed once per process.
        norms: Returns what WANDA weighs changes by, for the model that the app has just trained:
            ``{name: inputs.norm}`` of ``fl_darex.activations.layer_inputs``. Called as
            ``norms(message, context)``, and only where the server asks for WANDA.
        search: Returns the q of this client's survivors, where the server lets clients choose it;
            called as ``search(message, context, survivors, rule)``.
        secure_only: Refuse to train for a server that does not ask for secure aggregation.
        methods: Compression methods of one's own that a server may ask for. It calls them by name
            alone: a message never names a module to import.
        codings: Value codings of one's own, likewise.

    Raises:
        TypeError: If an argument is of another kind.
        ConfigError: If ``base`` is a path to no tensors: their names and types are read at once,
            the tensors when they are needed.
    """

    def __init__(
        self,
        base: Base | str | PathLike[str] | None = None,
        *,
        norms: Norms | None = None,
        search: Search | None = None,
        secure_only: bool = False,
        methods: Iterable[Method] = (),
        codings: Iterable[Coding] = (),
    ) -> None:
        if isinstance(base, Mapping):
            raise TypeError("base must be a path or a function that returns the tensors by name")
        if not isinstance(base, str | PathLike):
            checks.function("base", base, "a path, a function")
        checks.function("norms", norms)
        checks.function("search", search)
        for method in _listed("methods", methods):
            METHODS.add(method)
        for coding in _listed("codings", codings):
            CODINGS.add(coding)
        self._secure_only = checks.flag("secure_only", secure_only)
        self._receiver = Receiver(_from_path(base) if isinstance(base, str | PathLike) else base)
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
            return self._greet(greeting, message, context)
        note, terms = ModelNote.detach(config), Terms.detach(config)
        stage = Stage.detach(config)
        if stage is not None and stage.stage != MASKED:
            return Message(RecordDict({SECURE_KEY: answer(stage, context.state)}), reply_to=message)
        trains = message.metadata.message_type.partition(".")[0] == "train"
        if stage is None and trains and self._secure_only:
            raise PacketError(_IN_THE_CLEAR, Reason.TERMS)
        if note is not None:
            name = _model_of(message.content, note.record, "message")
            record = arrays_in(message.content)[name]
            model = self._receiver.receive(record, note, message, context)
            if model is None:
                lacking = ConfigRecord({"version": note.start})
                return Message(RecordDict({MISSING: lacking}), reply_to=message)
            message.content[name] = model
        if terms is None:
            if stage is not None:
                raise PacketError("there is nothing to mask: no packet is asked for", Reason.TERMS)
            return call_next(message, context)
        local = Local(
            norms=self._norms and partial(self._norms, message, context),
            search=self._search and partial(self._search, message, context),
        )
        return _compressed(terms, stage, local, message, context, call_next)

    def _greet(self, greeting: Greeting, message: Message, context: Context) -> Message:
        """Answer in the app's place: which partition this client has, and what it holds."""
        held = self._receiver.held(greeting.run, context) if greeting.first else None
        digests: dict[str, bytes] = {}
        if held is None and greeting.first:
            try:
                digests = self._receiver.digests(message, context)
            except Exception as error:  # the app's own: it must not keep the client out
                log(WARNING, "the base model cannot be had: %s: %s", type(error).__name__, error)
            if content_version(digests).hex() == greeting.first:
                held, digests = content_version(digests), {}
        reply = handshake.answer(message, handshake.partition_of(context))
        if greeting.first:
            reply.content["darex"] = ConfigRecord(
                {HELD_KEY: held.hex() if held else "", DIGESTS_KEY: b"".join(digests.values())}
            )
        return reply


def _compressed(
    terms: Terms,
    stage: Stage | None,
    local: Local,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
) -> Message:
    method = terms.uplink.how
    name = _model_of(message.content, terms.record, "message")
    sent = arrays_in(message.content)[name]
    before = view_arrays(sent)
    # The app may empty the record that it was given.
    message.content[name] = ArrayRecord(dict(sent))
    asked = Told(terms, terms.uplink.layout(before))
    with telling(asked):
        reply = call_next(message, context)
    if not reply.has_content() or (stage is None and not arrays_in(reply.content)):
        return reply
    name = _model_of(reply.content, name, "reply", before)
    arrays = view_arrays(arrays_in(reply.content)[name])  # read, never written
    if stage is None and (odd := restructured(arrays, before)):
        log(WARNING, "the app answers with other tensors than it was sent, %s; they go whole", odd)
        return reply
    memory = Memory(context.state) if method.remembers else None
    state = memory.recall(terms.counted, terms.slot) if memory else {}
    delta = _change(asked, arrays, before, unseen=stage is not None)
    packet, state = method.compress(delta, terms, local, state)
    if packet is None:
        if stage is not None:
            raise PacketError(f"method {method.name!r} has no packet to mask", Reason.TERMS)
    elif stage is not None:
        update = SparseUpdate.of_packet(read_packet(packet, delta.layout))
        reply = hide(reply, update, before, terms, stage, context.state)
    else:
        reply.content[name] = packet_record(packet, ties=write_ties(delta.layout))
    if memory:
        memory.keep(state, terms.round)
    return reply


def _change(asked: Told, arrays: Arrays, before: Arrays, unseen: bool) -> Delta:
    """Return what the app changed; what is added up unseen has one layout for all, without ties."""
    layout = asked.layout if unseen else tie(asked.layout, arrays, before)
    if asked.mask_first:
        check_on_mask(asked, layout, arrays, before)
    return Delta(arrays, before, layout=layout, dtype=asked.terms.uplink.dtype)


def _own_config(message: Message) -> ConfigRecord:
    """Return a copy of the message's configuration that has settings of ours, put in its place.

    In a simulation records may be shared between clients.
    """
    for name, config in list(configs_in(message.content).items()):
        if any(key.startswith("darex") for key in config):
            copy = ConfigRecord(dict(config))
            message.content[name] = copy
            return copy
    return ConfigRecord()


def _model_of(content: RecordDict, name: str, what: str, like: Iterable[str] | None = None) -> str:
    """Return which ArrayRecord is the model, by its name or by its tensors' names, if known."""
    records, names = arrays_in(content), set(like or ())
    found = model_among(records, name, lambda record: set(record) == names)
    if found is None:
        raise DeltaError(
            f"the {what} holds {len(records)} ArrayRecords, {sorted(records)}, and none of them "
            f"is named {name!r}; which one is the model?"
        )
    return found


def _from_path(path: str | PathLike[str]) -> Base:
    """Return a function that reads the tensors when they are needed, once per process.

    Raises:
        ConfigError: If nothing can be read there: not round by round on each client, but now.
    """
    if not Path(path).expanduser().exists():
        raise ConfigError(
            f"base: there is no file or folder {str(path)!r} on this machine; where only some "
            "machines have it, give a function that returns the tensors"
        )
    try:
        found = open_tensors(path)
    except ConfigError as error:
        raise ConfigError(f"base: {error}") from error
    if not found:
        raise ConfigError(f"base: {str(path)!r} holds no tensors")
    read = cache(lambda: read_tensors(path))
    return lambda message, context: read()


def _listed(name: str, rows: Iterable[Row]) -> list[Row]:
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise TypeError(f"{name} must be a list of objects, got {checks.shown(rows)}")
    return list(rows)
