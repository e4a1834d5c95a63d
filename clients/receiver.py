"""The client half of the downlink: from what a message carries to the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from logging import WARNING
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.files.model_cache import ModelCache
from fl_darex.flower.model_note import ModelNote, Step, delivered
from fl_darex.flower.records import to_record, view_arrays
from fl_darex.flower.roster import PARTITION_KEY
from fl_darex.ties import read_ties
from fl_darex.wire.reader import read_packet
from fl_darex.wire.versions import content_version, next_version, tensor_digests

Arrays = Mapping[str, NDArray[Any]]

Base = Callable[[Message, Context], Arrays]
"""Returns the tensors that a client holds before it is sent any, by name."""


class Receiver:
    """Turns deliveries into models, and keeps them on disk for the next message.

    Args:
        base: What the client holds from the start; None: nothing.
    """

    def __init__(self, base: Base | None) -> None:
        self._base = base
        # A worker runs many clients of one round: they share the model of this process.
        self._last: tuple[str, bytes, ArrayRecord] | None = None
        self._digested: tuple[Arrays, dict[str, bytes]] | None = None
        self._warned = False

    def receive(
        self, record: ArrayRecord, note: ModelNote, message: Message, context: Context
    ) -> ArrayRecord | None:
        """Return the model that a message's arrays stand for.

        Returns:
            The model; None if the client does not hold what they build on.

        Raises:
            PacketError: If the packets do not lead to the version that the server named.
        """
        tensors, steps = delivered(record)
        wanted = bytes.fromhex(note.model)
        cache = ModelCache(note.run)
        if not note.start:
            if steps:
                raise PacketError("packets came without a version to start from", Reason.VERSION)
            model: ArrayRecord | None = ArrayRecord(tensors)
        else:
            chain = _chain(bytes.fromhex(note.start), [step.packet for step in steps], wanted)
            model = self._recall(note.run, wanted)
            model = model or self._build(cache, note, chain, steps)
            if model is None and (base := self._first(tensors, chain[0], message, context)):
                model = _grow(base, note, chain, steps)
        if model is None:
            return None
        if steps or not note.start:  # what the client held before is there already
            self._remember(cache, _holder(context), wanted, model)
        self._last = (note.run, wanted, model)
        return ArrayRecord(dict(model))  # the app may empty the record that it is given

    def held(self, run: str, context: Context) -> bytes | None:
        """Return the version of a run's model that this client was brought to last."""
        return ModelCache(run).held_by(_holder(context))

    def digests(self, message: Message, context: Context) -> dict[str, bytes]:
        """Return digests of the tensors that this client holds from the start."""
        if self._base is None:
            return {}
        arrays = self._base(message, context)
        # Content is hashed once per process: the same mapping holds the same tensors.
        if self._digested is None or self._digested[0] is not arrays:
            self._digested = (arrays, tensor_digests(arrays))
        return self._digested[1]

    def _recall(self, run: str, version: bytes) -> ArrayRecord | None:
        if self._last is not None and self._last[:2] == (run, version):
            return self._last[2]
        return None

    def _remember(self, cache: ModelCache, holder: int, version: bytes, model: ArrayRecord) -> None:
        try:
            cache.store(version, view_arrays(model))
            cache.hold(holder, version)
        except OSError as error:
            if not self._warned:  # the next process will have to be sent the whole model
                log(WARNING, "models cannot be kept in %s: %s", cache.folder, error)
            self._warned = True

    def _build(
        self, cache: ModelCache, note: ModelNote, chain: Sequence[bytes], steps: Sequence[Step]
    ) -> ArrayRecord | None:
        """Return the model from the latest version of the chain that is at hand."""
        for done in reversed(range(len(chain))):
            recalled = self._recall(note.run, chain[done])
            arrays = view_arrays(recalled) if recalled else cache.load(chain[done])
            if arrays is not None:
                return _grow(arrays, note, chain[done:], steps[done:])
        return None

    def _first(
        self, tensors: Mapping[str, Array], version: bytes, message: Message, context: Context
    ) -> Arrays | None:
        """Return the first version: what the client holds from the start, and tensors sent."""
        if self._base is None:
            return None
        sent = view_arrays(ArrayRecord(dict(tensors)))
        digests = self.digests(message, context) | tensor_digests(sent)
        if content_version(digests) != version:
            return None
        return {**self._base(message, context), **sent}


def _holder(context: Context) -> int:
    """Return who holds a model: a restarted SuperNode may have a new id, but its old partition."""
    partition = context.node_config.get(PARTITION_KEY)
    return partition if isinstance(partition, int) else context.node_id


def _chain(start: bytes, packets: Sequence[bytes], wanted: bytes) -> list[bytes]:
    """Return the versions from the start to the model, one after each packet."""
    versions = list(accumulate(packets, next_version, initial=start))
    if versions[-1] != wanted:
        raise PacketError(
            f"the packets lead to version {versions[-1].hex()}, not {wanted.hex()}", Reason.VERSION
        )
    return versions


def _grow(
    arrays: Arrays, note: ModelNote, chain: Sequence[bytes], steps: Sequence[Step]
) -> ArrayRecord:
    """Apply packets, each to the version that it was made for."""
    layout = Layout.of(arrays, note.dense, note.dense_below)
    for version, step in zip(chain, steps, strict=False):
        packet = read_packet(step.packet, read_ties(layout, step.ties))
        if packet.header.base != version:
            raise PacketError(
                f"a packet changes version {packet.header.base.hex()}, not {version.hex()}",
                Reason.VERSION,
            )
        arrays = SparseUpdate.of_packet(packet).values(arrays)
    return to_record(arrays)
