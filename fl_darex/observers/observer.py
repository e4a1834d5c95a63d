"""What a run tells the outside world while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fl_darex.config import RunConfig
from fl_darex.flower.ledger import Entry

SaveModel = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """One round, as a line of ``rounds.jsonl``.

    Attributes:
        round: From 1.
        metric: The task's metric on evaluation data; None in a round without evaluation.
        loss: Loss on the same data; None likewise.
        train_loss: Mean local training loss, weighted by examples; None if no reply counted.
        clients: Clients that were asked.
        failures: Clients whose reply was an error, unusable, or never came.
        up_bytes: Client to server, all clients and kinds, as a deployment serialises them.
        down_bytes: Server to client.
        dense_up_bytes: The same exchanges with every tensor in full.
        dense_down_bytes: The same messages without anything of fl-darex.
        held_bytes: Those of them that are the model before round 1 for clients that hold it.
        q: The number that survivors were divided by; None where nothing was pruned.
        rho: How much the clients' updates agree, in [0, 1], 1/n where n of them are orthogonal;
            None where their packets do not say (`fl_darex.compression.rho`).
        pull: AdamR's largest decay weight in a last local step; None for other optimizers.
        seconds: Wall-clock time of the round, evaluation included; without the time that an engine
            takes to start.
        test_metric: The task's metric on its test examples, after the last round alone; None
            where the task has none.
    """

    round: int
    metric: float | None
    loss: float | None
    train_loss: float | None
    clients: int
    failures: int
    up_bytes: int
    down_bytes: int
    dense_up_bytes: int
    dense_down_bytes: int
    q: float | None
    pull: float | None
    seconds: float
    held_bytes: int = 0
    rho: float | None = None
    test_metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known before the first round.

    Attributes:
        config: The resolved configuration.
        metric_name: Name of the task's metric; higher is better.
        initial_metric: Its value before round 1; None without server evaluation.
        parameters: Entries of all exchanged tensors.
        model: What the model is: its class.
        examples: Training examples of all clients.
        evaluation_examples: Those that the metric is measured on.
        classes: Number of classes; 0 = none, or the task does not say.
        reports: The rounds that another process did, which was stopped.
        handshake: What it and the clients told each other before the first of them.
    """

    config: RunConfig
    metric_name: str
    initial_metric: float | None
    parameters: int
    model: str = ""
    examples: int = 0
    evaluation_examples: int = 0
    classes: int = 0
    reports: tuple[RoundReport, ...] = ()
    handshake: tuple[Entry, ...] = ()


class Observer(Protocol):
    """Follows a run; the server calls it from one thread, in this order."""

    def started(self, start: RunStart) -> None:
        """The model is loaded and the first round is about to begin."""

    def replied(self, entry: Entry) -> None:
        """A reply has arrived."""

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """A round is over; ``save_model(folder)`` writes the model as it is now."""
