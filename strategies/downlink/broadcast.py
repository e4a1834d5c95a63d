"""The server half of the downlink: who holds which version, and what each client is sent.

A client that holds nothing, or of which nothing is known, is sent the whole model. One that holds
an earlier version is sent the packets that lead from it to the present one, unless the whole
model is smaller. Clients' packets are never passed on: a packet of this module is the server's
own step, rounded before the server itself takes it, so that both sides hold the same bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.logger import log

from fl_darex.compression.downlink import DownlinkPolicy, StepTerms
from fl_darex.compression.method import State
from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.files.model_cache import ModelCache
from fl_darex.flower.model_note import DIGESTS_KEY, HELD_KEY, Greeting, ModelNote, model_record
from fl_darex.flower.records import into_record, to_arrays, to_record, view_arrays
from fl_darex.positions import Mask
from fl_darex.wire.header import NO_VERSION
from fl_darex.wire.json_notes import is_hex
from fl_darex.wire.reader import read_packet
from fl_darex.wire.versions import (
    VERSION_BYTES,
    content_version,
    next_version,
    tensor_digests,
)

from ..sent import same, structure

_MOST_LOST = 2  # a client that loses its model so often is sent the whole one from then on


class Broadcast:
    """Sends each client what it lacks of the model.

    Args:
        policy: What is sent of the server's step.
        keep: Fraction of a step that is sent, in units of 2**-32, by policies that drop something.
        values: How a step's numbers are written.
        seed: The run's seed.
        dense: Names of tensors whose whole change is sent.
        held: Whether clients of which nothing is known are taken to hold the first model; one
            that does not says so, and is sent it.

    Attributes:
        run: The run's own 16 hexadecimal digits, made by chance.
        model: The model that clients hold, or are about to.

    Raises:
        ValueError: If clients hold a model that would be sent whole all the same.
    """

    def __init__(
        self,
        policy: DownlinkPolicy,
        *,
        keep: int,
        values: str,
        seed: int,
        dense: Sequence[str],
        held: bool = False,
    ) -> None:
        if held and not policy.versions:
            raise ValueError(
                "base_held needs a downlink that builds on what clients hold: 'update' or 'server'"
            )
        self.run = secrets.token_hex(8)
        self._policy, self._keep, self._values, self._seed = policy, keep, values, seed
        self._named, self._dense, self._assume = tuple(dense), tuple(dense), held
        self.model = ArrayRecord()
        self._first = ArrayRecord()  # the model before the first packet
        self._digests: dict[str, bytes] = {}  # of its tensors
        self._versions: list[bytes] = []  # from the first to the present one
        self._packets: list[bytes] = []  # that lead from each to the next
        self._kept: State = {}  # of the server's steps, by the policy
        self._held: dict[int, bytes] = {}
        self._base: dict[int, frozenset[bytes]] = {}  # digests of what a client has from the start
        self._speaks: set[int] = set()  # clients that answered in our terms
        self._lost: dict[int, int] = {}  # how often a client did not hold what it should
        self._contents: dict[tuple[int, frozenset[str]], ArrayRecord] = {}

    @property
    def version(self) -> bytes:
        """The present model's version; zeros where nobody keeps versions."""
        return self._versions[-1] if self._policy.versions else NO_VERSION

    def present(self, record: ArrayRecord) -> None:
        """Say which model the next messages carry.

        Any other tensors than those that `advance` returned begin a new history.
        """
        if (self._versions or not self._policy.versions) and same(record, self.model):
            return
        self.model = self._first = record
        self._dense = tuple(name for name in self._named if name in record)
        if not self._policy.versions:
            return
        self._base = {}
        self._digests = tensor_digests(view_arrays(record))
        self._versions, self._packets = [content_version(self._digests)], []
        self._contents = {}

    def end(self) -> None:
        """Take away what clients on this machine kept of the run, and assume nothing of others.

        Other machines forget it after `fl_darex.files.model_cache.FORGOTTEN_DAYS`.
        """
        ModelCache(self.run).remove()
        self._held.clear()
        self._base.clear()

    # --- what the run remembers -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return models, versions, packets, what the policy kept and what each client holds."""
        return {
            "run": self.run,
            "model": to_arrays(self.model),
            "first": None if self._first is self.model else to_arrays(self._first),
            "digests": dict(self._digests),
            "versions": list(self._versions),
            "packets": list(self._packets),
            "kept": {name: array.copy() for name, array in self._kept.items()},
            "clients": [dict(self._held), dict(self._base), set(self._speaks), dict(self._lost)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold the models and know of clients what `state` said."""
        self.run, self.model = state["run"], to_record(state["model"])
        first = state["first"]
        self._first = self.model if first is None else to_record(first)
        self._digests, self._kept = state["digests"], state["kept"]
        self._versions, self._packets = state["versions"], state["packets"]
        self._held, self._base, self._speaks, self._lost = state["clients"]
        self._contents = {}

    # --- what a client holds ----------------------------------------------------------------------

    def greet(self, config: ConfigRecord) -> None:
        """Write a greeting, which asks a client what it holds, into a message's configuration."""
        first = content_version(self._digests).hex() if self._policy.versions else ""
        Greeting(run=self.run, first=first).attach(config)

    def heard(self, node: int, answer: ConfigRecord) -> None:
        """Take note of a client's answer to the greeting."""
        held, digests = answer.get(HELD_KEY), answer.get(DIGESTS_KEY)
        if held is None:
            return
        self._speaks.add(node)
        if is_hex(held, 2 * VERSION_BYTES):
            self._held[node] = bytes.fromhex(str(held))
        if isinstance(digests, bytes) and self._digests:
            size = VERSION_BYTES
            parts = (digests[at : at + size] for at in range(0, len(digests), size))
            self._base[node] = frozenset(parts)

    def spoke(self, node: int) -> None:
        """A client's packet said which version it was made from, so it holds that version."""
        self._speaks.add(node)
        self.holds(node)

    def holds(self, node: int) -> None:
        """A client was sent the present model and has answered."""
        if node in self._speaks and self._lost.get(node, 0) < _MOST_LOST:
            self._held[node] = self.version

    def lacks(self, node: int) -> None:
        """A client does not hold what it should: nothing is assumed of it any more."""
        self._held.pop(node, None)
        self._base.pop(node, None)
        self._lost[node] = self._lost.get(node, 0) + 1

    # --- what it is sent --------------------------------------------------------------------------

    def content(self, node: int) -> tuple[ArrayRecord, ModelNote | None]:
        """Return the arrays for one client, and what they are; None: just the model."""
        # Without versions: a restored state may know of some, of a run with another policy.
        start, tensors = self._start(node) if self._policy.versions else (None, [])
        if start is None:
            return self.whole()
        key = (start, frozenset(tensors))
        if key not in self._contents:
            sent = ArrayRecord({name: self._first[name] for name in tensors})
            self._contents[key] = model_record(sent, self._packets[start:])
        return self._contents[key], self._note(self._versions[start].hex())

    def whole(self) -> tuple[ArrayRecord, ModelNote | None]:
        """Return the whole model, and a note that says so."""
        return self.model, self._note("") if self._policy.versions else None

    def _note(self, start: str) -> ModelNote:
        return ModelNote(run=self.run, start=start, model=self.version.hex(), dense=self._dense)

    def _start(self, node: int) -> tuple[int | None, list[str]]:
        """Return where a client's way to the present model begins, and the tensors it needs."""
        held = self._held.get(node)
        if held in self._versions:
            start, tensors = self._versions.index(held), []
        elif node in self._base:
            known = self._base[node]
            start, tensors = 0, [n for n, digest in self._digests.items() if digest not in known]
        elif self._assume and self._first and node not in self._lost:
            start, tensors = 0, []
        else:
            return None, []
        sent = sum(len(self._first[name].data) for name in tensors)
        sent += sum(map(len, self._packets[start:]))
        return (start, tensors) if sent < _bytes(self.model) else (None, [])

    # --- the next version -------------------------------------------------------------------------

    def advance(self, record: ArrayRecord, sent: Sequence[Mask] | None, round_: int) -> ArrayRecord:
        """Take the server's step as the clients will be told of it.

        Args:
            record: The model after the step.
            sent: Masks of all packets that entered it; None if something else did, too.
            round_: The federated round.

        Returns:
            The model that everybody will hold.
        """
        if not self._policy.versions:
            self.model = record
            return record
        before, after = view_arrays(self.model), view_arrays(record)
        data = None
        if structure(before) == structure(after):
            delta = Delta(after, before, self._dense)
            data = self._packed(delta, sent, round_)
        else:
            odd = sorted({name for name, _ in structure(before) ^ structure(after)})[:5]
            log(
                WARNING,
                "round %s: the step added, removed or reshaped %s; all clients are sent "
                "the whole model",
                round_,
                odd,
            )
        if data is None:
            self.present(record)
            return record
        if 2 * len(data) > _bytes(self.model):
            log(INFO, "round %s: the server's step is dense, and so is its packet", round_)
        packet = read_packet(data, delta.layout)
        self.model = into_record(SparseUpdate.of_packet(packet).values(before))
        self._versions.append(next_version(self.version, data))
        self._packets.append(data)
        self._contents = {}
        self._forget()
        return self.model

    def _packed(self, step: Delta, sent: Sequence[Mask] | None, round_: int) -> bytes | None:
        """Return the step's packet; None where the whole model has to go to everybody."""
        terms = StepTerms(
            seed=self._seed,
            round=round_,
            version=self.version,
            keep=self._keep,
            values=self._values,
            masks=sent,
        )
        try:
            packet, self._kept = self._policy.pack(step, terms, self._kept)
        except DeltaError as error:
            log(WARNING, "round %s: the whole model goes to all clients: %s", round_, error)
            packet, self._kept = None, {}
        return packet

    def _forget(self) -> None:
        """Forget packets that nobody will be sent: all from there on are larger than the model."""
        whole = _bytes(self.model)
        while sum(map(len, self._packets)) >= whole and len(self._packets) > 1:
            del self._packets[0], self._versions[0]
            self._first, self._digests, self._base = ArrayRecord(), {}, {}


def _bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
