"""What a strategy's `start` was told of each round, so that it can be told again."""

from __future__ import annotations

from typing import Any

from flwr.app import MetricRecord

Metrics = dict[str, Any]


class History:
    """The answers of a run's rounds, without models; a `fl_darex.saveable.Saveable`."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[int, Metrics | None]] = {}
        self.advanced = False  # whether a round had a model

    def note(self, what: str, round_: int, metrics: Any) -> None:
        """Keep an answer; one that is no MetricRecord is None when it is told again.

        Args:
            what: Who gave it, such as ``"train"``.
            round_: The federated round.
            metrics: The answer.
        """
        known = dict(metrics) if isinstance(metrics, MetricRecord) else None
        self._answers.setdefault(what, {})[round_] = known

    def told(self, what: str, round_: int) -> MetricRecord | None:
        """Return an answer that was kept; None: there was none."""
        known = self._answers.get(what, {}).get(round_)
        return None if known is None else MetricRecord(known)

    def state(self) -> dict[str, Any]:
        """Return all answers."""
        answers = {what: dict(by_round) for what, by_round in self._answers.items()}
        return {"answers": answers, "advanced": self.advanced}

    def restore(self, state: dict[str, Any]) -> None:
        """Know the answers that `state` said."""
        self._answers, self.advanced = state["answers"], state["advanced"]
