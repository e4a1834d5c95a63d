"""The server half of the downlink: who holds which version, and what each client is sent.

A client that holds nothing, or of which nothing is known, is sent the whole model. One that holds
an earlier version is sent the packets that lead from it to the present one, unless the whole
model is smaller. Clients' packets are never passed on: a packet of this module is the server's
own step, rounded before the server itself takes it, so that both sides hold the same bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.logger import log

from fl_darex.compression.downlink import DownlinkPolicy, StepTerms
from fl_darex.compression.method import State
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Delta
from fl_darex.files.model_cache import ModelCache
from fl_darex.flower.model_note import (
    Greeting,
    ModelNote,
    Step,
    model_record,
)
from fl_darex.flower.records import into_record, to_arrays, to_record, view_arrays
from fl_darex.positions import Mask
from fl_darex.ties import tie, write_ties
from fl_darex.wire.codings import CODINGS, type_of
from fl_darex.wire.header import NO_VERSION
from fl_darex.wire.versions import (
    content_version,
    next_version,
    tensor_digests,
)

from ..sent import same, structure
from .holdings import Holdings
from .step import packed


class Broadcast:
    """Sends each client what it lacks of the model.

    Args:
        policy: What is sent of the server's step.
        keep: Fraction of a step that is sent, in units of 2**-32, by policies that drop something.
        values: How a step's numbers are written.
        uplink: The way up: its seed, and which tensors are sent whole, are those of the way down.
        held: Whether clients of which nothing is known are taken to hold the first model; one
            that does not says so, and is sent it.

    Attributes:
        policy: What is sent of the server's step.
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
        uplink: Uplink,
        held: bool = False,
    ) -> None:
        if held and not policy.versions:
            raise ValueError(
                "base_held needs a downlink that builds on what clients hold: 'update' or 'server'"
            )
        self.run = secrets.token_hex(8)
        self.policy, self._keep, self._values = policy, keep, values
        self._uplink, self._asked, self._assume = uplink, uplink, held
        self.model = ArrayRecord()
        self._first = ArrayRecord()  # the model before the first packet
        self._digests: dict[str, bytes] = {}  # of its tensors
        self._versions: list[bytes] = []  # from the first to the present one
        self._steps: list[Step] = []  # that lead from each to the next
        self._kept: State = {}  # of the server's steps, by the policy
        self._clients = Holdings()
        self._contents: dict[tuple[int, frozenset[str]], ArrayRecord] = {}

    @property
    def version(self) -> bytes:
        """The present model's version; zeros where nobody keeps versions."""
        return self._versions[-1] if self.policy.versions else NO_VERSION

    def present(self, record: ArrayRecord) -> None:
        """Say which model the next messages carry.

        Any other tensors than those that `advance` returned begin a new history.
        """
        if (self._versions or not self.policy.versions) and same(record, self.model):
            return
        self.model = self._first = record
        if not self.policy.versions:
            return
        self._clients.base = {}
        tensors = view_arrays(record)
        self._asked, self._digests = self._uplink.fitted(tensors), tensor_digests(tensors)
        self._versions, self._steps = [content_version(self._digests)], []
        self._contents = {}

    def end(self) -> None:
        """Take away what clients on this machine kept of the run, and assume nothing of others.

        Other machines forget it after `fl_darex.files.model_cache.FORGOTTEN_DAYS`.
        """
        ModelCache(self.run).remove()
        self._clients.forget()

    def send_whole(self, names: Sequence[str]) -> None:
        """Send the whole change of more tensors from now on.

        A note says for all of a client's packets which tensors are whole, so who does not hold the
        present version is sent the model.
        """
        whole = dict.fromkeys([*self._uplink.dense, *names])
        self._uplink = replace(self._uplink, dense=tuple(whole))
        self._asked = self._uplink.fitted(view_arrays(self.model))
        if self.policy.versions:
            self._versions, self._steps, self._contents = self._versions[-1:], [], {}
            self._first, self._digests, self._clients.base = ArrayRecord(), {}, {}

    # --- what the run remembers -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return models, versions, packets, what the policy kept and what each client holds."""
        return {
            "run": self.run,
            "dense": self._uplink.dense,
            "model": to_arrays(self.model),
            "first": None if self._first is self.model else to_arrays(self._first),
            "digests": dict(self._digests),
            "versions": list(self._versions),
            "steps": [tuple(step) for step in self._steps],
            "kept": {name: array.copy() for name, array in self._kept.items()},
            "clients": self._clients.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold the models and know of clients what `state` said."""
        self.run, self.model = state["run"], to_record(state["model"])
        self._uplink = replace(self._uplink, dense=state["dense"])
        self._asked = self._uplink.fitted(state["model"])
        first = state["first"]
        self._first = self.model if first is None else to_record(first)
        self._digests, self._kept = state["digests"], state["kept"]
        self._versions, self._steps = state["versions"], [Step(*one) for one in state["steps"]]
        self._clients.restore(state["clients"])
        self._contents = {}

    # --- what a client holds ----------------------------------------------------------------------

    def greet(self, config: ConfigRecord) -> None:
        """Write a greeting, which asks a client what it holds, into a message's configuration."""
        first = content_version(self._digests).hex() if self.policy.versions else ""
        Greeting(run=self.run, first=first).attach(config)

    def heard(self, node: int, answer: ConfigRecord) -> None:
        """Take note of a client's answer to the greeting."""
        self._clients.heard(node, answer, self._digests.values())

    def spoke(self, node: int) -> None:
        """A client's packet said which version it was made from, so it holds that version."""
        self._clients.spoke(node, self.version)

    def holds(self, node: int) -> None:
        """A client was sent the present model and has answered."""
        self._clients.holds(node, self.version)

    def lacks(self, node: int) -> None:
        """A client does not hold what it should."""
        self._clients.lacks(node)

    # --- what it is sent --------------------------------------------------------------------------

    def content(self, node: int) -> tuple[ArrayRecord, ModelNote | None]:
        """Return the arrays for one client, and what they are; None: just the model."""
        # Without versions: a restored state may know of some, of a run with another policy.
        start, tensors = self._start(node) if self.policy.versions else (None, [])
        if start is None:
            return self.whole()
        key = (start, frozenset(tensors))
        if key not in self._contents:
            sent = ArrayRecord({name: self._first[name] for name in tensors})
            self._contents[key] = model_record(sent, self._steps[start:])
        return self._contents[key], self._note(self._versions[start].hex())

    def whole(self) -> tuple[ArrayRecord, ModelNote | None]:
        """Return the whole model, and a note that says so."""
        return self.model, self._note("") if self.policy.versions else None

    def _note(self, start: str) -> ModelNote:
        asked = self._asked
        whole: dict[str, Any] = {"dense": asked.dense, "dense_below": asked.dense_below}
        return ModelNote(run=self.run, start=start, model=self.version.hex(), **whole)

    def _start(self, node: int) -> tuple[int | None, list[str]]:
        """Return where a client's way to the present model begins, and the tensors it needs."""
        clients = self._clients
        held = clients.held.get(node)
        if held in self._versions:
            start, tensors = self._versions.index(held), []
        elif node in clients.base:
            known = clients.base[node]
            start, tensors = 0, [n for n, digest in self._digests.items() if digest not in known]
        elif self._assume and self._first and node not in clients.lost:
            start, tensors = 0, []
        else:
            return None, []
        sent = sum(len(self._first[name].data) for name in tensors)
        sent += sum(len(step.packet) for step in self._steps[start:])
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
        if not self.policy.versions:
            self.model = record
            return record
        before, after = view_arrays(self.model), view_arrays(record)
        made = None
        if structure(before) == structure(after):
            layout = tie(self._asked.layout(before), after, before)
            delta = Delta(after, before, layout=layout, dtype=type_of(CODINGS[self._values]))
            terms = self._terms(sent, round_)
            made, self._kept = packed(self.policy, delta, before, after, terms, self._kept)
        else:
            odd = sorted({name for name, _ in structure(before) ^ structure(after)})[:5]
            log(
                WARNING,
                "round %s: the step added, removed or reshaped %s; all clients are sent "
                "the whole model",
                round_,
                odd,
            )
        if made is None:
            self.present(record)
            return record
        data, moved = made
        if 2 * len(data) > _bytes(self.model):
            log(INFO, "round %s: the server's step is dense, and so is its packet", round_)
        self.model = into_record(moved)
        self._versions.append(next_version(self.version, data))
        self._steps.append(Step(data, write_ties(delta.layout)))
        self._contents = {}
        self._forget()
        return self.model

    def _terms(self, sent: Sequence[Mask] | None, round_: int) -> StepTerms:
        return StepTerms(
            seed=self._uplink.seed,
            round=round_,
            version=self.version,
            keep=self._keep,
            values=self._values,
            masks=sent,
        )

    def _forget(self) -> None:
        """Forget packets that nobody will be sent: all from there on are larger than the model."""
        whole = _bytes(self.model)
        while sum(len(s.packet) for s in self._steps) >= whole and len(self._steps) > 1:
            del self._steps[0], self._versions[0]
            self._first, self._digests, self._clients.base = ArrayRecord(), {}, {}


def _bytes(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
