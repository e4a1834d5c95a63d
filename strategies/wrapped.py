"""The wrapped strategy: how it is called, and what it gives back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fl_darex.errors import DeltaError
from fl_darex.flower.records import metrics_in, to_arrays, to_record, view_arrays

from .forms import PRIVATE, form_for, layers, own_methods
from .remembered import forgotten, remembered, remind, settings
from .reply import Reply
from .sent import Sent, structure

HOOKS = (
    *("summary", "configure_train", "aggregate_train"),
    *("configure_evaluate", "aggregate_evaluate"),
)
"""What `Strategy.start` calls, Flower's own or one that somebody wrote."""


class Wrapped:
    """A Flower strategy, and how to talk to it.

    Args:
        strategy: Any strategy of Flower or one built on them, or a wrapper around one.
        form: One of `fl_darex.strategies.forms.FORMS`, or ``"auto"``.

    Attributes:
        strategy: The strategy.
        layers: The strategy and those inside it.
        form: Which replies it is given.
        private: Whether it adds noise that is calibrated to a clipping norm.
        evaluates_itself: Whether an evaluation is not for Flower's own code to add up.

    Raises:
        ValueError: If the strategy cannot be wrapped, or the form is unknown or does not suit it.
    """

    def __init__(self, strategy: Strategy, form: str = "auto") -> None:
        self.form, self._chosen = form_for(strategy, form), form != "auto"
        self.strategy, self.layers = strategy, layers(strategy)
        self.private = isinstance(strategy, PRIVATE)
        self.evaluates_itself = bool(own_methods(strategy, "aggregate_evaluate"))
        self._aggregates = bool(own_methods(strategy, "aggregate_train"))
        self._own: dict[str, Any] = {}  # what hooks stand in front of

    @property
    def name(self) -> str:
        """What the strategy is called in messages."""
        return type(self.strategy).__name__

    @property
    def weighted_by(self) -> str:
        """Key of the metric that weighs a client."""
        keys = [getattr(one, "weighted_by_key", None) for one in self.layers]
        return next((key for key in keys if isinstance(key, str)), "num-examples")

    @property
    def clipping_norm(self) -> float | None:
        """The norm that a strategy's noise is calibrated to, if there is noise."""
        return float(self.strategy.clipping_norm) if isinstance(self.strategy, PRIVATE) else None

    def having(self, name: str) -> Strategy | None:
        """Return the strategy, or the one inside it, that has an attribute; None: none has."""
        return next((one for one in self.layers if hasattr(one, name)), None)

    # --- its own start ----------------------------------------------------------------------------

    @contextmanager
    def hooked(self, by: Any) -> Iterator[None]:
        """Let the strategy's own `start` call the `HOOKS` of something in place of its own."""
        self._own = {name: vars(self.strategy).get(name) for name in HOOKS}
        try:
            with _replaced(self.strategy, {name: getattr(by, name) for name in HOOKS}):
                yield
        finally:
            self._own = {}

    @contextmanager
    def itself(self) -> Iterator[Any]:
        """Yield the strategy as it is without hooks."""
        with ExitStack() as stack:
            if self._own:
                stack.enter_context(_replaced(self.strategy, self._own))
            yield self.strategy
            if self._own:  # it may have set one on itself meanwhile
                self._own = {name: vars(self.strategy).get(name) for name in HOOKS}

    # --- before the round -------------------------------------------------------------------------

    def start_from(self, arrays: ArrayRecord) -> None:
        """Let FedAvgM count its next step from the model that everybody holds.

        It remembers the model that it answered itself, which a rounded step does not lead to.
        """
        for one in self.layers:
            if isinstance(getattr(one, "current_arrays", None), ArrayRecord):
                one.current_arrays = ArrayRecord(dict(arrays))  # type: ignore[attr-defined]

    # --- what the run remembers -------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what the strategy and those inside it remember: momentum, moments, counts.

        A strategy with `state` and `restore` of its own says it itself. Of others, all attributes
        are taken that are numbers, texts, arrays, records of arrays or containers of these.
        """
        return {"layers": [remembered(one) for one in self.layers]}

    def settings(self) -> dict[str, Any]:
        """Return numbers and texts among the strategies' attributes, by ``Class.attribute``."""
        return {
            f"{type(one).__name__}.{name}": value
            for one in reversed(self.layers)
            for name, value in settings(one).items()
        }

    def forgotten(self) -> list[str]:
        """Return which attributes of the strategies are not in `state`, each with its kind."""
        return [name for one in self.layers for name in forgotten(one)]

    def restore(self, state: dict[str, Any]) -> None:
        """Let the strategies remember what `state` said."""
        for one, known in zip(self.layers, state["layers"], strict=True):
            remind(one, known)

    # --- when it is over --------------------------------------------------------------------------

    def step(
        self,
        round_: int,
        used: Sequence[Reply],
        arrays: Sequence[ArrayRecord],
        failed: Sequence[Message],
        before: ArrayRecord | None = None,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy take its step.

        Args:
            round_: The federated round.
            used: The replies that count; there may be none.
            arrays: What the strategy is given as their arrays: one record for each reply, or one
                for all.
            failed: An error for each reply that does not count. Strategies that add noise are
                given them only where nothing else came: they let a round with one error go.
            before: The model before the step, where the arrays are not all of the model.
        """
        if before is not None:
            self.start_from(before)
        if used and self.form == "mean":
            replies = [self._standing_for_all(used, arrays[0])]
        elif used and len(arrays) == 1:
            replies = [self._own_reply(reply, ArrayRecord(dict(arrays[0]))) for reply in used]
        else:
            pairs = zip(used, arrays, strict=True)
            replies = [self._own_reply(reply, record) for reply, record in pairs]
        if not used or not self.private:
            replies += failed
        with self._metrics_of(used), self.itself() as strategy:
            if not self._chosen and (now := form_for(strategy, "auto")) != self.form:
                raise DeltaError(
                    f"{self.name} was given replies={self.form!r} and needs {now!r} by now; say "
                    "what it needs from the start: replies='own', or 'support' with mask='round'"
                )
            found: tuple[ArrayRecord | None, MetricRecord | None]
            found = strategy.aggregate_train(round_, replies)
            return found

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
                content[name] = MetricRecord(dict(metrics_in(reply.message.content)[name]))
                metrics_in(content)[name][self.weighted_by] = 1.0
            elif name == reply.metrics or self._aggregates:
                content[name] = record
        message.content = content
        return message

    @contextmanager
    def _metrics_of(self, used: Sequence[Reply]) -> Iterator[None]:
        """Let a function for metrics that somebody wrote see all replies, not their average."""
        contents = [_without_arrays(reply.message.content) for reply in used]

        def guarded(own: Callable[..., MetricRecord]) -> Callable[..., MetricRecord]:
            def call(given: list[RecordDict], key: str) -> MetricRecord:
                try:
                    return own(contents if self.form == "mean" else given, key)
                except Exception as error:  # one client's odd metric must not end the run
                    log(WARNING, "the metrics of this round are lost: %s", error)
                    return MetricRecord()

            return call

        with ExitStack() as stack:
            for one in self.layers:
                if (own := getattr(one, _METRICS, None)) is not None:
                    stack.enter_context(_replaced(one, {_METRICS: guarded(own)}))
            yield


_METRICS = "train_metrics_aggr_fn"


@contextmanager
def _replaced(strategy: Strategy, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Give an object other attributes for a while; None: what its class says."""
    own = vars(strategy)
    before = {name: own[name] for name in attributes if name in own}

    def put(some: Mapping[str, Any]) -> None:
        for name in attributes:
            own.pop(name, None)
        own.update({name: value for name, value in some.items() if value is not None})

    put(attributes)
    try:
        yield
    finally:
        put(before)


def typed(record: ArrayRecord, sent: Sent, counters: Mapping[str, Any]) -> ArrayRecord:
    """Return the strategy's answer in the types that the model has.

    Flower's optimizers answer in float64, and no optimizer's step makes sense on counters. An
    answer of another structure stays as it is.

    Args:
        record: The strategy's answer; it may leave the counters out.
        sent: The tensors before the step.
        counters: The clients' mean of tensors that are not floating point.
    """
    base = sent.arrays
    missing = {name: array for name, array in counters.items() if name not in record}
    if structure(record) | structure(missing) != sent.structure:
        return record
    if not missing and all(str(base[name].dtype) == one.dtype for name, one in record.items()):
        return record
    arrays = to_arrays(record)
    return to_record(
        {
            name: counters[name] if name in counters else arrays[name].astype(before.dtype)
            for name, before in base.items()
        }
    )


def explodes(record: ArrayRecord, before: Mapping[str, Any]) -> str:
    """Return the name of a tensor that a step made NaN or infinite; empty: there is none."""
    for name, array in view_arrays(record).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            old = before.get(name)
            sound = old is None or old.shape != array.shape or np.isfinite(old).all()
            if sound:
                return name
    return ""


def _metrics(reply: Reply) -> RecordDict:
    return RecordDict({reply.metrics: metrics_in(reply.message.content)[reply.metrics]})


def _without_arrays(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if not isinstance(v, ArrayRecord)})
