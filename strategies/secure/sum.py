"""Secure aggregation as `DarexStrategy` sees it: messages out, one packet with the mean back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_darex.compression.terms import Terms
from fl_darex.compression.update import SparseUpdate
from fl_darex.compression.uplink import Uplink
from fl_darex.compression.weighted_sum import Part
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.secagg import SecureAggregation
from fl_darex.secagg.messages import Stage
from fl_darex.secagg.numbers import Mean, Target
from fl_darex.wire.codings import nature_of

from ..reply import Came, Reply, nobody
from ..sent import Asked, Sent
from ..wrapped import Wrapped
from .metrics import metrics_of
from .round import SecureRound
from .suspects import Suspects

_MANY = 0.01  # of a round's numbers: then the range is worth a warning

Arrays = Mapping[str, NDArray[Any]]


class SecureSum:
    """Opens and closes the secure aggregation of one round after the other.

    Args:
        settings: What was asked for.
        asked: The settings of the uplink.
        wrapped: The strategy that takes a step on the mean.
        norm: Largest norm of a client's update, which clients see to themselves; None: any.

    Raises:
        ValueError: If only a server that sees single updates could do what is asked.
    """

    def __init__(
        self, settings: SecureAggregation, asked: Uplink, wrapped: Wrapped, norm: float | None
    ) -> None:
        if asked.mask != "round" or not asked.how.packs:
            raise ValueError(
                "secure aggregation adds up numbers for the same coordinates: use mask='round' and "
                f"method 'dare' or 'structured' (p=0 sends all), got mask {asked.mask!r} and "
                f"method {asked.method!r}"
            )
        if nature_of(asked.values).rotated:
            raise ValueError(
                f"values={asked.values!r} does not go with secure aggregation: each client's codes "
                "are of a rotation of its own, and their sum means nothing; leave values out, as "
                "SecureAggregation(bits=...) says how numbers travel up, or name downlink_values"
            )
        if asked.how.remembers:
            raise ValueError(
                f"method {asked.method!r} keeps what its packets do not deliver, and cannot know "
                "what becomes of them as integers, which are clipped and rounded: secure "
                "aggregation is for method 'dare' or 'structured'"
            )
        if asked.rule:
            raise ValueError(
                f"with secure aggregation all clients need the same q; q={asked.rule!r} lets each "
                "choose its own: use 'dare', a number or 'server-validation'"
            )
        if wrapped.form in ("support", "own"):
            does = "compares clients" if wrapped.form == "support" else "needs each client's arrays"
            raise ValueError(f"{wrapped.name} {does}, and secure aggregation opens their sum alone")
        self._settings, self._wrapped, self._norm = settings, wrapped, norm or 0.0
        self._round: SecureRound | None = None
        self._suspects, self._sound = Suspects(), False  # whether a sum was opened yet
        self._asked: Mapping[int, Asked] = {}

    def begin(
        self,
        messages: Sequence[Message],
        asked: Mapping[int, Asked],
        grid: Grid,
        timeout: float,
    ) -> list[Message]:
        """Exchange keys and shares, and return the messages of the clients that take part.

        Args:
            messages: The round's, one per client.
            asked: What each client is asked for, by node id.
            grid: Where they are.
            timeout: Seconds to wait for short answers, where the settings do not say.

        Raises:
            DeltaError: If clients are sent different models.
        """
        self._round, self._asked = None, asked
        if not messages:
            return []
        if len({id(one.sent) for one in asked.values()}) > 1:
            raise DeltaError(
                f"{self._wrapped.name} sends clients different models, and secure aggregation adds "
                "up changes of one: leave secure= out"
            )
        _, any_terms, sent, _ = next(iter(asked.values()))
        slots = {node: one.terms.slot for node, one in asked.items()}
        out = self._suspects.left_out(slots.values(), self._settings.suits)
        some = [one for one in messages if slots[one.metadata.dst_node_id] not in out]
        target = self._target(sent, any_terms)
        try:
            opened = SecureRound(self._settings, grid, some, slots, target, timeout)
            opened.open()
        except PacketError as error:
            without = f"; clients {sorted(out)} are left out" if out else ""
            log(WARNING, "round %s: %s%s", any_terms.round, error, without)
            return []
        self._round = opened
        log(INFO, "secure aggregation: ring of %s bits", 8 * opened.ring.width)
        return [message for message in some if self.stage(message.metadata.dst_node_id)]

    def _target(self, sent: Sent, terms: Terms) -> Target:
        """Return what this round's sealed packets must be; the mask is drawn for that."""
        where = terms.uplink.how.mask(terms).in_layout(sent.layout)
        counts = tuple(where[spec.name].size for spec in sent.layout.pruned)
        weight = "" if self._wrapped.private else self._wrapped.weighted_by
        return Target(sent.arrays, sent.layout, terms, counts, weight, self._norm)

    def stage(self, node: int) -> Stage | None:
        """Return what goes with the model to a client; None: it does not take part."""
        return self._round.stages.get(self._asked[node].terms.slot) if self._round else None

    def end(self, replies: Iterable[Message]) -> tuple[Reply, list[Reply]]:
        """Return one reply with the mean, and the replies of the clients in it.

        Raises:
            DeltaError: If nobody ever counted, and no client can make the change that is asked for.
            PacketError: If the sum cannot be opened.
        """
        came = list(replies)
        if self._round is None:
            raise PacketError("secure aggregation did not come about", Reason.REPLY)
        done, self._round = self._round, None
        try:
            mean, counted = done.close(came)
        except PacketError as error:
            self._check_app(came)
            self._suspects.catch(done.caught)
            if error.reason is Reason.VALUES and not done.caught:
                # One that dropped out may be to blame: what it dealt has to be rebuilt.
                self._suspects.summed(done.stages, sound=False)
            raise
        self._suspects.catch(done.caught)
        self._suspects.summed(done.stages, sound=True)
        self._sound = True
        if mean.clipped > _MANY:
            log(
                WARNING,
                "%.1f %% of the clients' numbers were clipped; a wider range loses less",
                100 * mean.clipped,
            )
        used = self._replies(mean, counted)
        return used[0], used

    def state(self) -> dict[str, Any]:
        """Return whom later rounds do without; see `fl_darex.saveable.Saveable`."""
        return {"sound": self._sound} | self._suspects.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Do without those that `state` said."""
        self._sound = state["sound"]
        self._suspects.restore(state)

    def _check_app(self, replies: Sequence[Message]) -> None:
        """Raise `DeltaError` if it is the app, at every client, that keeps all rounds from a sum.

        What the protocol refuses may be another client's doing, and another round's sum is sound.
        """
        came = Came(failed=[one for one in replies if "DeltaError" in _reason(one)])
        if not self._sound and len(came.failed) == len(replies) and came.structural:
            raise nobody(came.structural)

    def _replies(self, mean: Mean, counted: Sequence[Message]) -> list[Reply]:
        """Return a reply for each client in the mean: all have its update and the same weight."""
        part = Part(SparseUpdate.of_survivors(mean.survivors), mean.weight / len(counted))
        sent = [metrics_of(message) for message in counted]
        names = [name for name in self._settings.metrics if all(name in one for one in sent)]
        replies = []
        for message, metrics in zip(counted, sent, strict=True):
            kept = MetricRecord({name: metrics[name] for name in names})
            kept[self._wrapped.weighted_by] = part.weight
            arrays = next(iter(message.content.array_records.values()))
            message.content = RecordDict({"arrays": arrays, "metrics": kept})
            told = self._asked[message.metadata.src_node_id]
            replies.append(Reply(message, "arrays", "metrics", told, told.sent, part))
        return replies


def _reason(reply: Message) -> str:
    return reply.error.reason if reply.has_error() and reply.error.reason else ""
