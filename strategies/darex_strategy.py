"""`DarexStrategy`: the server half, around any Flower strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from fl_darex.compressors import COMPRESSORS
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, nearest
from fl_darex.masks import keep_threshold
from fl_darex.rescaling import resolve_q
from fl_darex.seeds import derive
from fl_darex.wire.handshake import Roster
from fl_darex.wire.ledger import Entry, Ledger, LedgerGrid
from fl_darex.wire.records import to_arrays, to_record
from fl_darex.wire.terms import Terms
from fl_darex.wire.values import CODINGS

from .aggregation import Reply, weighted_mean
from .ordered_grid import OrderedGrid, seeded_random

_LARGEST_WEIGHT = 2**53


class DarexStrategy(Strategy):
    """Asks clients for pruned packets and hands the wrapped strategy their average.

    ``DarexStrategy(FedAvg(...), p=0.99)`` is a Flower strategy: what the wrapped one samples,
    configures and evaluates stays its own. Replies are averaged in partition order into one
    reply, so FedAvg, FedAvgM and FedAdam take their own step on the averaged (pseudo-)gradient.
    A client that sends ordinary arrays counts like any other. A bad packet costs that reply,
    with a line in the log, never the round.

    ``p = 0`` with fp32 values equals dense averaging to float32 round-off: within
    ``(clients + 4) * 2**-23 * (max |tensor| + 1)`` for updates below 1. ``method="dense"`` has
    the very bits of Flower's FedAvg on the replies in partition order.

    Args:
        strategy: Flower's FedAvg, FedAvgM, FedAdam or one built on them.
        p: Fraction of each delta that is dropped, in [0, 1); 0 drops nothing.
        q: Survivors are divided by it: ``"dare"`` is 1-p (unbiased), or a number in (0, 1].
        values: How packets write numbers: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``,
            ``"int4"`` or ``"sign"``; all but the last are unbiased.
        mask: ``"client"``: independent masks; ``"round"``: all clients of a round share one.
        count: ``"random"``: each entry by a draw of its own; ``"exact"``: each tensor keeps
            exactly its share, rounded up or down at random.
        method: ``"dare"``, or ``"dense"``: the same path with nothing dropped.
        seed: Seed of masks and of the sampling of clients, in [0, 2**63).
        dense: Names of tensors whose whole delta is sent, such as a fresh head.
        on_reply: Called with the ledger's entry as each reply arrives.

    Attributes:
        ledger: The bytes of every message of the run.
        q: The number by which survivors are divided.
        counted: Replies that entered the average of the last round.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        strategy: FedAvg,
        p: float = 0.99,
        *,
        q: float | str = "dare",
        values: str = "fp16",
        mask: str = "client",
        count: str = "random",
        method: str = "dare",
        seed: int = 0,
        dense: Iterable[str] = (),
        on_reply: Callable[[Entry], None] | None = None,
    ) -> None:
        _check_choice("values", values, CODINGS)
        _check_choice("mask", mask, ("client", "round"))
        _check_choice("count", count, ("random", "exact"))
        _check_choice("method", method, COMPRESSORS)
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        self.strategy = strategy
        self.ledger = Ledger()
        self.counted = 0
        self._kept = keep_threshold(p)
        self.q = resolve_q(q, self._kept)
        self._values, self._shared, self._method = values, mask == "round", method
        self._exact = count == "exact"
        self._seed, self._dense, self._on_reply = seed, tuple(dense), on_reply
        self._roster = Roster(self.ledger.partition_of)
        self._timeout = 3600.0
        self._base: dict[str, Any] = {}
        self._layout = Layout(())
        self._terms: dict[int, Terms] = {}

    def summary(self) -> None:
        """Log the settings of this strategy and of the wrapped one."""
        kept = self._kept / 2**32
        log(INFO, "\t├──> DAREx: %s, p = %g, q = %g", self._method, 1 - kept, self.q)
        log(INFO, "\t│\t└── values %s, mask shared: %s", self._values, self._shared)
        self.strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds; see `flwr.serverapp.strategy.Strategy.start` for the arguments."""
        self._timeout = kwargs.get("timeout", self._timeout)
        counted = LedgerGrid(grid, self.ledger, self._on_reply)
        return super().start(counted, initial_arrays, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients, and add each one's terms."""
        self._base = to_arrays(arrays)
        self._layout = Layout.of(self._base, self._dense)
        self._terms = {}
        with seeded_random(derive(self._seed, "sample", server_round)):
            messages = list(
                self.strategy.configure_train(server_round, arrays, config, self._view(grid))
            )
        self.ledger.name_clients()
        messages.sort(key=self._slot_of)
        for message in messages:
            node = message.metadata.dst_node_id
            self._terms[node] = terms = self._terms_for(server_round, self._slot_of(message))
            if self._method != "dense":
                message.content = _with_terms(message.content, terms)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the packets and let the wrapped strategy take its step on the average."""
        self.counted = 0
        usable = self._usable(replies)
        try:
            mean, used = weighted_mean(self._base, self._layout, usable, _refuse)
            self.counted = len(used)
        except PacketError as error:
            log(WARNING, "round %s: %s; the model stays as it is", server_round, error)
            return None, None
        averaged = _averaged(used, to_record(mean), self.strategy)
        with _metrics_of_all(self.strategy, used):
            arrays, metrics = self.strategy.aggregate_train(server_round, [averaged])
        return _typed(arrays, self._base, mean), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients for evaluation."""
        with seeded_random(derive(self._seed, "evaluate", server_round)):
            messages = list(
                self.strategy.configure_evaluate(server_round, arrays, config, self._view(grid))
            )
        return sorted(messages, key=self._slot_of)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy average the metrics, in partition order."""
        return self.strategy.aggregate_evaluate(
            server_round, sorted(replies, key=self._partition_of)
        )

    def _view(self, grid: Grid) -> Grid:
        return OrderedGrid(grid, self._roster, self._timeout)

    def _slot_of(self, message: Message) -> int:
        return self._roster.partition_of[message.metadata.dst_node_id]

    def _partition_of(self, reply: Message) -> int:
        return self._roster.partition_of.get(reply.metadata.src_node_id, -1)

    def _terms_for(self, server_round: int, slot: int) -> Terms:
        return Terms(
            method=self._method,
            kept=self._kept,
            q=self.q,
            values=self._values,
            seed=self._seed,
            round=server_round,
            slot=slot,
            shared=self._shared,
            exact=self._exact,
            dense=self._dense,
        )

    def _usable(self, replies: Iterable[Message]) -> list[Reply]:
        """Return the replies that can be averaged, one per client, in partition order."""
        usable: dict[int, Reply] = {}
        for message in sorted(replies, key=self._partition_of):
            node = message.metadata.src_node_id
            try:
                if node not in self._terms or node in usable:
                    raise PacketError("nobody asked for this reply, or it came twice")
                usable[node] = _read(message, self._terms[node], self.strategy.weighted_by_key)
            except PacketError as error:
                _log_refused(self._partition_of(message), error)
        return list(usable.values())


def _read(message: Message, terms: Terms, weighted_by_key: str) -> Reply:
    if message.has_error():
        raise PacketError(message.error.reason or "the client failed without a reason")
    records = list(message.content.array_records.values())
    metrics = list(message.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        raise PacketError(
            f"a reply must hold one ArrayRecord and one MetricRecord, "
            f"found {len(records)} and {len(metrics)}"
        )
    weight = metrics[0].get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= _LARGEST_WEIGHT:
        raise PacketError(f"the weight {weighted_by_key!r} is {weight!r}, not in [0, 2**53]")
    return Reply(message, records[0], float(weight), terms)


def _refuse(reply: Reply, error: PacketError) -> None:
    _log_refused(reply.terms.slot, error)


def _log_refused(partition: int, error: PacketError) -> None:
    log(WARNING, "client %s does not count this round: %s", partition, error)


def _typed(
    record: ArrayRecord | None, base: Mapping[str, Any], mean: Mapping[str, Any]
) -> ArrayRecord | None:
    """Return the strategy's answer in the types that the model has.

    Flower's optimizers answer in float64, and no optimizer's step makes sense on counters:
    what is not floating point is the clients' mean itself.
    """
    if record is None or all(str(base[k].dtype) == a.dtype for k, a in record.items()):
        return record
    whole = {name for name, array in base.items() if array.dtype.kind != "f"}
    return to_record(
        {
            name: mean[name] if name in whole else array.astype(base[name].dtype)
            for name, array in to_arrays(record).items()
        }
    )


def _averaged(used: list[Reply], arrays: ArrayRecord, strategy: FedAvg) -> Message:
    """Return one reply that stands for all: their average, with a weight of 1."""
    reply = copy.copy(used[0].message)
    metrics = MetricRecord({strategy.weighted_by_key: 1.0})
    reply.content = RecordDict({strategy.arrayrecord_key: arrays, "metrics": metrics})
    return reply


@contextmanager
def _metrics_of_all(strategy: FedAvg, used: list[Reply]) -> Iterator[None]:
    """Let the strategy's own function for metrics see all replies, not their average."""
    own = strategy.train_metrics_aggr_fn
    contents = [_without_arrays(reply.message.content) for reply in used]

    def of_all(_: list[RecordDict], key: str) -> MetricRecord:
        try:
            return own(contents, key)
        except Exception as error:  # one client's odd metric must not end the run
            log(WARNING, "the metrics of this round are lost: %s", error)
            return MetricRecord()

    strategy.train_metrics_aggr_fn = of_all
    try:
        yield
    finally:
        strategy.train_metrics_aggr_fn = own


def _without_arrays(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if not isinstance(v, ArrayRecord)})


def _with_terms(content: RecordDict, terms: Terms) -> RecordDict:
    """Return a copy with the terms; Flower shares one content among all messages of a round."""
    copied = RecordDict(dict(content.items()))
    name = next(iter(content.config_records), "config")
    config = ConfigRecord(dict(content.config_records.get(name, ConfigRecord())))
    terms.attach(config)
    copied[name] = config
    return copied


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        choices = sorted(known)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}{nearest(value, choices)}")
