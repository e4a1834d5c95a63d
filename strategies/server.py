"""What the server of this repository knows of a run: it evaluates, reports and validates."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl_darex.compression.downlink import POLICIES
from fl_darex.config.going_on import identity
from fl_darex.errors import ConfigError, DarexError
from fl_darex.flower.entry import Entry, from_columns, to_columns
from fl_darex.flower.records import view_arrays
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import Observer, RoundReport, RunStart
from fl_darex.observers.guarded import Guarded
from fl_darex.rescaling.rules import SERVER_RULES
from fl_darex.saveable import Saveable
from fl_darex.training.evaluation import evaluate, mean_loss
from fl_darex.training.session import Session

from .averaging import Average
from .checkpoints import Checkpoints
from .darex_strategy import DarexStrategy


class Server:
    """Evaluates after each round and tells the observers; a `fl_darex.saveable.Saveable`.

    Args:
        session: Model, data and configuration.
        observers: Who is told of the run; what they remember is kept with it.
        checkpoint: The folder for checkpoints; None: there are none.

    Attributes:
        strategy: The run's.
        counted: Replies that counted, of all rounds so far.
        average: What becomes of the models after each round.
    """

    def __init__(
        self, session: Session, observers: Sequence[Observer], checkpoint: Path | None = None
    ) -> None:
        self.session = session
        self.config = session.config
        self.observers = [Guarded(observer) for observer in observers]
        self._saved = [observer for observer in observers if isinstance(observer, Saveable)]
        self._checkpoint = checkpoint
        self.counted = self._round = 0
        self._initial: float | None = None
        self._reports: list[RoundReport] = []
        self._handshake: list[Entry] = []
        self._train: MetricRecord = MetricRecord()
        self._scores: dict[str, float] = {}
        self._clock, self._starting = time.monotonic(), True
        server = self.config.server
        self.average = Average(
            server.average, first=server.average_from, decay=server.average_decay
        )
        self.strategy = self.darex_strategy()

    def darex_strategy(self, base_held: bool = False) -> DarexStrategy:
        """Return the strategy of the run.

        Args:
            base_held: Whether clients are taken to hold the model before round 1.
        """
        compress = self.config.compress
        asked = self.config.uplink(self.session.dense)
        return DarexStrategy(
            self.flower_strategy(),
            uplink=asked,
            downlink=POLICIES.choose(compress.downlink),
            base_held=base_held,
            downlink_p=compress.server_p,
            downlink_values=compress.server_values,
            validate=self.validate if asked.q in SERVER_RULES else None,
            on_reply=self.replied,
            checkpoint=self._checkpoints(),
        )

    def _checkpoints(self) -> Checkpoints | None:
        every = self.config.federation.checkpoint_every
        if self._checkpoint is None or not every:
            return None
        also, facts = {"server": self}, identity(self.config)
        return Checkpoints(self._checkpoint, every, also=also, facts=facts, keep=True)

    def start(self, initial_metric: float | None) -> RunStart:
        """Return what is known before the first round of this process.

        Args:
            initial_metric: The metric of the model before round 1; None: it was not measured.
        """
        task = self.session.task
        return RunStart(
            config=self.config,
            metric_name=task.metric_name,
            initial_metric=initial_metric,
            parameters=sum(tensor.numel() for tensor in self.session.tensors.values()),
            model=type(self.session.model).__name__,
            examples=len(task.train),
            evaluation_examples=len(task.evaluation),
            classes=task.classes,
            reports=tuple(self._reports),
            handshake=tuple(self._handshake),
        )

    def flower_strategy(self) -> Strategy:
        """Return the Flower strategy that takes the server's step."""
        federation, server = self.config.federation, self.config.server
        options: dict[str, Any] = {
            "fraction_train": federation.sample_size / federation.clients,
            "min_train_nodes": min(federation.sample_size, federation.needed),
            "min_evaluate_nodes": federation.needed,
            "min_available_nodes": federation.needed,
            "train_metrics_aggr_fn": self._train_metrics,
            "evaluate_metrics_aggr_fn": self._client_scores,
        }
        strategy = server.chosen.make(options, server.options)
        if federation.evaluate != "clients":
            # Set here, not above: Flower's constructor warns of what is meant.
            strategy.fraction_evaluate = 0.0  # type: ignore[attr-defined]
        return strategy

    def replied(self, entry: Entry) -> None:
        """Pass a reply on to the observers."""
        self._starting = self._starting and entry.kind == HANDSHAKE
        if self._starting:  # the engine's workers, and loading what they need, are no round's time
            self._clock = time.monotonic()
        if entry.kind == HANDSHAKE:
            self._handshake.append(entry)
        for observer in self.observers:
            observer.replied(entry)

    def round_closed(self, round_: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate and report; round 0 is the model before the first round.

        The session is left with what was evaluated, which observers may save; training goes on
        from ``arrays``.
        """
        self.session.write(view_arrays(self.average.after(round_, arrays)))
        scores = self._evaluate(round_)
        metric, self._round = scores.get(self.session.task.metric_name), round_
        if round_ == 0:
            self._initial = metric
            for observer in self.observers:
                observer.started(self.start(metric))
        else:
            self.counted += self.strategy.counted
            report = self._report(round_, metric, scores.get("loss"))
            self._reports.append(report)
            entries = self.strategy.ledger.of_round(round_)
            for observer in self.observers:
                observer.round_closed(report, entries, self.session.save_model)
            self._check_replies(report)
        self._clock = time.monotonic()
        self._train, self._scores = MetricRecord(), {}
        return MetricRecord({**scores}) if scores else None

    def _check_replies(self, report: RoundReport) -> None:
        """End a run of which too few clients are left.

        Raises:
            DarexError: If fewer replies counted than ``federation.min-replies``.
        """
        counted, least = report.clients - report.failures, self.config.federation.min_replies
        if counted < least:
            raise DarexError(
                f"round {report.round}: {counted} of {report.clients} clients' replies counted, "
                f"federation.min-replies = {least}; the log says for each other one why"
            )

    def state(self) -> dict[str, Any]:
        """Return what the run came to so far, for the server and its observers."""
        return {
            "round": self._round,
            "counted": self.counted,
            "initial": self._initial,
            "reports": [asdict(report) for report in self._reports],
            "handshake": to_columns(self._handshake),
            "average": self.average.state(),
            "observers": [one.state() for one in self._saved],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, and tell the observers that the run has started.

        Raises:
            ConfigError: If no round is left to do.
        """
        self._round, self.counted = state["round"], state["counted"]
        if self._round >= (rounds := self.config.federation.rounds):
            raise ConfigError(
                f"federation.rounds = {rounds}, and round {self._round} is over; set it higher"
            )
        self._initial = state["initial"]
        self._reports = [RoundReport(**fields) for fields in state["reports"]]
        self._handshake = from_columns(state["handshake"])
        self.average.restore(state["average"])
        for observer, known in zip(self._saved, state["observers"], strict=True):
            observer.restore(known)
        for one in self.observers:
            one.started(self.start(self._initial))

    def validate(self, arrays: Mapping[str, NDArray[Any]]) -> float:
        """Return a model's loss on the examples that are held out for choosing q."""
        self.session.write(arrays)
        threads = os.cpu_count() or 1
        return mean_loss(self.session, self.session.validation_examples, threads)

    def _evaluate(self, round_: int) -> dict[str, float]:
        federation = self.config.federation
        if federation.evaluate != "server":
            return self._scores
        if round_ % federation.evaluate_every and round_ != federation.rounds:
            return {}
        # Clients wait now, so the server may use every core.
        threads = os.cpu_count() or 1
        return evaluate(self.session, self.session.evaluation_examples(), threads)

    def _report(self, round_: int, metric: float | None, loss: float | None) -> RoundReport:
        entries = self.strategy.ledger.of_round(round_)
        trained = [entry for entry in entries if entry.kind == "train"]
        pruned = self.config.compress.chosen.packs
        adamr = self.config.train.optimizer == "adamr"
        return RoundReport(
            round=round_,
            metric=metric,
            loss=loss,
            train_loss=_number(self._train.get("loss")),
            clients=len(trained),
            failures=len(trained) - self.strategy.counted,
            up_bytes=sum(entry.up_bytes for entry in entries),
            down_bytes=sum(entry.down_bytes for entry in entries),
            dense_up_bytes=sum(entry.dense_up_bytes for entry in entries),
            dense_down_bytes=sum(entry.dense_down_bytes for entry in entries),
            held_bytes=sum(entry.held_bytes for entry in entries),
            q=self.strategy.q if pruned else None,
            rho=self.strategy.rho,
            pull=_number(self._train.get("pull")) if adamr else None,
            test_metric=self._test(round_),
            seconds=time.monotonic() - self._clock,
        )

    def _test(self, round_: int) -> float | None:
        """Measure the final model on examples that nothing was chosen by, if there are any."""
        test = self.session.task.test
        if test is None or round_ != self.config.federation.rounds:
            return None
        scores = evaluate(self.session, list(test), os.cpu_count() or 1)
        return scores[self.session.task.metric_name]

    def _train_metrics(self, contents: list[RecordDict], key: str) -> MetricRecord:
        self._train = _mean_metrics(contents, key)
        if self._train:
            rows = [r for content in contents for r in content.metric_records.values()]
            self._train["pull"] = max(_numbers(row).get("pull", 0.0) for row in rows)
        return self._train

    def _client_scores(self, contents: list[RecordDict], key: str) -> MetricRecord:
        metrics = _mean_metrics(contents, key)
        self._scores = _numbers(metrics)
        return metrics


def _mean_metrics(contents: list[RecordDict], key: str) -> MetricRecord:
    """Return the weighted mean of each metric that all replies have."""
    rows = [_numbers(next(iter(content.metric_records.values()))) for content in contents]
    weights = [row.pop(key) for row in rows]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return MetricRecord(
        {name: float(np.average([row[name] for row in rows], weights=weights)) for name in names}
    )


def _numbers(metrics: MetricRecord) -> dict[str, float]:
    return {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
