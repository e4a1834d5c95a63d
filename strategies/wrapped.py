"""The wrapped strategy: which replies it is given, and what it gives back.

Flower's strategies expect the arrays of every client. Those that take a step on an average are
given the average, which takes no more memory than one model, in one of two ways: as ``"mean"``, one
reply that stands for all, or as ``"each"``: every reply with its own metrics and records and the
average in place of its arrays, for strategies that count replies or look at them. Strategies that
compare clients are given every client's own values where all of them have some: ``"support"``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fl_darex.flower.records import to_arrays, to_record

from .intake import Reply
from .remembered import remembered, remind

FORMS = ("mean", "each", "support")

COMPARING = (
    *(flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum, flower.Bulyan),
    flower.QFedAvg,
)
"""Compare clients or weigh each by its own change; an average means nothing to them."""

PRIVATE = (
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
)
"""Add noise for a clipping norm to an average in which all clients count the same."""

_REFUSED: dict[type, str] = {
    flower.DifferentialPrivacyServerSideAdaptiveClipping: (
        "adapts its norm to how many clients exceed it, which an average does not tell; use "
        "DifferentialPrivacyServerSideFixedClipping"
    ),
    flower.DifferentialPrivacyClientSideAdaptiveClipping: (
        "adapts its norm to what clients say of their change before pruning; use "
        "DifferentialPrivacyServerSideFixedClipping"
    ),
    flower.FedXgbBagging: "exchanges trees, not tensors; use it without DarexStrategy",
    flower.FedXgbCyclic: "exchanges trees, not tensors; use it without DarexStrategy",
}


class Wrapped:
    """A Flower strategy, and how to talk to it.

    Args:
        strategy: Any strategy of Flower or one built on them, or a wrapper for differential
            privacy around one.
        form: One of `FORMS`, or ``"auto"``.

    Attributes:
        strategy: The strategy.
        inner: What is left of it without wrappers.
        form: Which replies it is given.
        private: Whether it adds noise that is calibrated to a clipping norm.

    Raises:
        ValueError: If the strategy cannot be wrapped, or the form is unknown or does not suit it.
    """

    def __init__(self, strategy: Strategy, form: str = "auto") -> None:
        self.strategy = self.inner = strategy
        while isinstance(inner := getattr(self.inner, "strategy", None), Strategy):
            self.inner = inner
        for one in (strategy, self.inner):
            if reason := next((why for kind, why in _REFUSED.items() if isinstance(one, kind)), ""):
                raise ValueError(f"{type(one).__name__} {reason}")
        self.private = isinstance(strategy, PRIVATE)
        self.form = self._suitable(form)

    @property
    def name(self) -> str:
        """What the strategy is called in messages."""
        return type(self.strategy).__name__

    @property
    def weighted_by(self) -> str:
        """Key of the metric that weighs a client."""
        return str(getattr(self.inner, "weighted_by_key", "num-examples"))

    @property
    def clipping_norm(self) -> float | None:
        """The norm that a strategy's noise is calibrated to, if there is noise."""
        return float(self.strategy.clipping_norm) if isinstance(self.strategy, PRIVATE) else None

    def _suitable(self, form: str) -> str:
        if form not in ("auto", *FORMS):
            raise ValueError(f"replies must be one of {sorted(('auto', *FORMS))}, got {form!r}")
        comparing = isinstance(self.inner, COMPARING)
        if self.private and comparing:
            raise ValueError(f"{self.name} adds noise to an average; wrap FedAvg in it")
        if comparing and form in ("mean", "each"):
            raise ValueError(
                f"{self.name} compares clients; it cannot be given replies={form!r}, leave it out"
            )
        if self.private and form not in ("auto", "each"):
            raise ValueError(f"{self.name} counts replies; it needs replies='each'")
        if form != "auto":
            return form
        if comparing:
            return "support"
        return "each" if self.private or _own(self.strategy) else "mean"

    # --- before the round -------------------------------------------------------------------------

    def start_from(self, arrays: ArrayRecord) -> None:
        """Let FedAvgM count its next step from the model that everybody holds.

        It remembers the model that it answered itself, which a rounded step does not lead to.
        """
        if isinstance(getattr(self.inner, "current_arrays", None), ArrayRecord):
            self.inner.current_arrays = ArrayRecord(dict(arrays))  # type: ignore[attr-defined]

    # --- what the run remembers -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what the strategy and those inside it remember: momentum, moments, counts.

        A strategy with `state` and `restore` of its own says it itself. Of others, all attributes
        are taken that are numbers, texts, arrays, records of arrays or containers of these.
        """
        return {"layers": [remembered(one) for one in self._layers()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Let the strategies remember what `state` said."""
        for one, known in zip(self._layers(), state["layers"], strict=True):
            remind(one, known)

    def _layers(self) -> list[Strategy]:
        found = [self.strategy]
        while found[-1] is not self.inner:
            found.append(found[-1].strategy)  # type: ignore[attr-defined]
        return found

    # --- when it is over --------------------------------------------------------------------------

    def step(
        self,
        round_: int,
        used: Sequence[Reply],
        arrays: Sequence[ArrayRecord],
        before: ArrayRecord | None = None,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy take its step.

        Args:
            round_: The federated round.
            used: The replies that count.
            arrays: What the strategy is given as their arrays: one record for each reply, or one
                for all.
            before: The model before the step, where the arrays are not all of the model.
        """
        if before is not None:
            for one in (self.strategy, self.inner):
                if isinstance(getattr(one, "current_arrays", None), ArrayRecord):
                    one.current_arrays = ArrayRecord(dict(before))  # type: ignore[attr-defined]
        if self.form == "mean":
            replies = [self._standing_for_all(used, arrays[0])]
        elif len(arrays) == 1:
            replies = [self._own_reply(reply, ArrayRecord(dict(arrays[0]))) for reply in used]
        else:
            pairs = zip(used, arrays, strict=True)
            replies = [self._own_reply(reply, record) for reply, record in pairs]
        with self._metrics_of(used):
            return self.strategy.aggregate_train(round_, replies)

    def _standing_for_all(self, used: Sequence[Reply], arrays: ArrayRecord) -> Message:
        """Return one reply with everybody's weight and mean metrics."""
        metrics = MetricRecord()
        try:
            metrics = aggregate_metricrecords([_metrics(r) for r in used], self.weighted_by)
        except Exception as error:  # one client's odd metric must not end the run
            log(WARNING, "the metrics of this round are lost: %s", error)
        metrics[self.weighted_by] = sum(reply.part.weight for reply in used)
        reply = copy.copy(used[0].message)
        reply.content = RecordDict({used[0].model: arrays, used[0].metrics: metrics})
        return reply

    def _own_reply(self, reply: Reply, arrays: ArrayRecord) -> Message:
        """Return a reply with other arrays; a strategy of Flower's own accepts no more records."""
        message, content = copy.copy(reply.message), RecordDict()
        for name, record in reply.message.content.items():
            if name == reply.model:
                content[name] = arrays
            elif name == reply.metrics and self.private:
                content[name] = MetricRecord(dict(reply.message.content.metric_records[name]))
                content.metric_records[name][self.weighted_by] = 1.0
            elif name == reply.metrics or _own(self.strategy):
                content[name] = record
        message.content = content
        return message

    @contextmanager
    def _metrics_of(self, used: Sequence[Reply]) -> Iterator[None]:
        """Let the strategy's own function for metrics see all replies, not their average."""
        own = getattr(self.inner, "train_metrics_aggr_fn", None)
        if own is None:
            yield
            return
        contents = [_without_arrays(reply.message.content) for reply in used]

        def guarded(given: list[RecordDict], key: str) -> MetricRecord:
            try:
                found: MetricRecord = own(contents if self.form == "mean" else given, key)
                return found
            except Exception as error:  # one client's odd metric must not end the run
                log(WARNING, "the metrics of this round are lost: %s", error)
                return MetricRecord()

        self.inner.train_metrics_aggr_fn = guarded  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.inner.train_metrics_aggr_fn = own  # type: ignore[attr-defined]


def typed(record: ArrayRecord, base: Mapping[str, Any], counters: Mapping[str, Any]) -> ArrayRecord:
    """Return the strategy's answer in the types that the model has.

    Flower's optimizers answer in float64, and no optimizer's step makes sense on counters.

    Args:
        record: The strategy's answer; it may leave the counters out.
        base: The tensors before the step.
        counters: The clients' mean of tensors that are not floating point.
    """
    if set(record) == set(base) and all(
        str(base[name].dtype) == array.dtype for name, array in record.items()
    ):
        return record
    arrays = to_arrays(record)
    return to_record(
        {
            name: counters[name] if name in counters else arrays[name].astype(before.dtype)
            for name, before in base.items()
        }
    )


def _own(strategy: Strategy) -> bool:
    """Return whether a strategy has an aggregation that Flower does not come with."""
    defined = next(kind for kind in type(strategy).__mro__ if "aggregate_train" in vars(kind))
    return not defined.__module__.startswith("flwr.")


def _metrics(reply: Reply) -> RecordDict:
    return RecordDict({reply.metrics: reply.message.content.metric_records[reply.metrics]})


def _without_arrays(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if not isinstance(v, ArrayRecord)})
