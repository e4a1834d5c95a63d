"""Secure aggregation as `DarexStrategy` sees it: messages out, one packet with the mean back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_darex.compression.compressor import Pruned
from fl_darex.compression.terms import Terms
from fl_darex.compression.uplink import Request
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.positions import positions_in
from fl_darex.secagg import SecureAggregation
from fl_darex.secagg.messages import Stage
from fl_darex.secagg.numbers import Mean
from fl_darex.survivors import Survivors
from fl_darex.wire.packet import encode

from ..aggregation import Reply
from ..wrapped import Wrapped
from .round import SecureRound, Target

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
        self,
        settings: SecureAggregation,
        asked: Request,
        wrapped: Wrapped,
        norm: float | None,
    ) -> None:
        method = asked.compressor
        if asked.mask != "round" or not isinstance(method, Pruned):
            raise ValueError(
                "secure aggregation adds up numbers for the same coordinates: use mask='round' and "
                f"method 'dare' or 'structured' (p=0 sends all), got mask {asked.mask!r} and "
                f"method {asked.method!r}"
            )
        if asked.rule:
            raise ValueError(
                f"with secure aggregation all clients need the same q; q={asked.rule!r} lets each "
                "choose its own: use 'dare', a number or 'server-validation'"
            )
        if wrapped.form == "support":
            raise ValueError(
                f"{wrapped.name} compares clients, and secure aggregation opens their sum alone"
            )
        self._settings, self._method, self._wrapped = settings, method, wrapped
        self._norm = norm or 0.0
        self._round: SecureRound | None = None
        self._stages: dict[int, Stage] = {}
        self._terms: Mapping[int, Terms] = {}
        self._target: Target | None = None
        self._counts: tuple[int, ...] = ()

    def begin(
        self,
        messages: Sequence[Message],
        terms: Mapping[int, Terms],
        base: Arrays,
        layout: Layout,
        grid: Grid,
        timeout: float,
    ) -> list[Message]:
        """Exchange keys and shares, and return the messages of the clients that take part.

        Args:
            messages: The round's, one per client.
            terms: What each client is told, by node id.
            base: The tensors that clients are sent.
            layout: Their layout.
            grid: Where they are.
            timeout: Seconds to wait for short answers, where the settings do not say.
        """
        self._round, self._stages, self._terms = None, {}, terms
        if not messages:
            return []
        self._target = self._aim(base, layout, next(iter(terms.values())))
        slots = {node: told.slot for node, told in terms.items()}
        weight = "" if self._wrapped.private else self._wrapped.weighted_by
        try:
            opened = SecureRound(
                self._settings, grid, messages, slots, self._target, weight, timeout
            )
            stages = opened.open()
        except PacketError as error:
            log(WARNING, "round %s: %s", self._target.round, error)
            return []
        self._round = opened
        log(INFO, "secure aggregation: ring of %s bits", 8 * opened.ring.width)
        self._stages = {node: stages[slot] for node, slot in slots.items() if slot in stages}
        return [message for message in messages if message.metadata.dst_node_id in self._stages]

    def _aim(self, base: Arrays, layout: Layout, terms: Terms) -> Target:
        """Return what this round's masked packets must be; the mask is drawn for that."""
        where = positions_in(layout, self._method.mask(terms))
        self._counts = tuple(where[spec.name].size for spec in layout.pruned)
        version = bytes.fromhex(terms.base)
        return Target(base, layout, version, terms.round, sum(self._counts), self._norm)

    def stage(self, node: int) -> Stage | None:
        """Return what goes with the model to a client."""
        return self._stages.get(node)

    def end(self, replies: Iterable[Message]) -> tuple[Reply, list[Reply]]:
        """Return one reply with the mean, and the replies of the clients in it.

        Raises:
            PacketError: If the sum cannot be opened.
        """
        if self._round is None:
            raise PacketError("secure aggregation did not come about", Reason.REPLY)
        mean, counted = self._round.close(replies)
        self._round = None
        if mean.clipped > _MANY:
            log(
                WARNING,
                "%.1f %% of the clients' numbers were clipped; a wider range loses less",
                100 * mean.clipped,
            )
        used = self._replies(mean, counted)
        return used[0], used

    def _replies(self, mean: Mean, counted: Sequence[Message]) -> list[Reply]:
        """Return a reply for each client in the mean: all have its packet and the same weight."""
        terms = self._terms[counted[0].metadata.src_node_id]
        target = self._target_of_round()
        packet = self._method.decompress(self._packet(mean, terms), target.layout, terms)
        names = _metrics_of_all(counted, self._settings.metrics)
        weight = mean.weight / len(counted)
        replies = []
        for message in counted:
            metrics = MetricRecord({name: _metrics(message)[name] for name in names})
            metrics[self._wrapped.weighted_by] = weight
            arrays = next(iter(message.content.array_records.values()))
            message.content = RecordDict({"arrays": arrays, "metrics": metrics})
            told = self._terms[message.metadata.src_node_id]
            replies.append(Reply(message, "arrays", "metrics", weight, told, packet))
        return replies

    def _target_of_round(self) -> Target:
        if self._target is None:
            raise PacketError("secure aggregation did not come about", Reason.REPLY)
        return self._target

    def _packet(self, mean: Mean, terms: Terms) -> bytes:
        """Return the packet that one client would send whose update is the mean."""
        target = self._target_of_round()
        survivors = Survivors(
            layout=target.layout,
            mask=self._method.mask(terms),
            numbers=mean.survivors,
            counts=self._counts,
            dense=mean.dense,
            raw=mean.raw,
            q=terms.q,
        )
        return encode(survivors, "fp32", base=target.version, sender=terms.slot)


def _metrics(message: Message) -> MetricRecord:
    """Return the metrics that a reply has in the clear."""
    return next(iter(message.content.metric_records.values()), MetricRecord())


def _metrics_of_all(messages: Sequence[Message], names: Iterable[str]) -> list[str]:
    """Return which of the metrics that were asked for every client sent."""
    return [name for name in names if all(name in _metrics(message) for message in messages)]
