"""A strategy's `start` that goes on where another process stopped.

The wrapped strategy's own `start` runs from its first round on, whoever wrote it. Rounds that are
over by the checkpoint are not run: their answers are told again, nobody is asked, and the last of
them gives the model. What `start` gathers, such as Flower's `Result`, is that of the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import BoundArguments
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, Protocol, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid

from fl_darex import __version__
from fl_darex.errors import ConfigError, DarexError, one_line
from fl_darex.files.checkpoint import Checkpoint, refuse_foreign
from fl_darex.files.states import Packed
from fl_darex.flower.private import is_simulated
from fl_darex.flower.records import view_arrays
from fl_darex.saveable import Saveable
from fl_darex.wire.versions import content_version, tensor_digests

from .checkpoints import Checkpoints
from .history import History
from .wrapped import Wrapped

_TRAIN, _EVALUATE, _CENTRAL = "train", "evaluate", "central"


class Rounds(Saveable, Protocol):
    """What happens in a round; `fl_darex.strategies.rounds.PackedRounds`."""

    @property
    def model(self) -> ArrayRecord:
        """The model that the next round starts from."""

    @property
    def remembers(self) -> bool:
        """Whether clients keep something for the next round."""

    def summary(self) -> None:
        """Log the settings."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the step."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin an evaluation."""

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics."""


class Resumed:
    """Stands between a strategy's `start` and its rounds, and keeps checkpoints of them.

    A checkpoint is written when the next round begins: all that a round brings along is then over,
    an evaluation on the server too. One that cannot be written costs a line in the log.

    Args:
        rounds: What happens in a round.
        wrapped: The strategy whose `start` it is.
        checkpoints: Where they lie.
        grid: Where the clients are; a simulation of ours says what these remember.
    """

    def __init__(
        self, rounds: Rounds, wrapped: Wrapped, checkpoints: Checkpoints, grid: Grid
    ) -> None:
        self._rounds, self._wrapped, self._settings = rounds, wrapped, checkpoints
        self._clients = grid if isinstance(grid, Saveable) else None
        self._forgetful = rounds.remembers and self._clients is None and is_simulated(grid)
        self._file = Checkpoint(Path(checkpoints.folder))
        self._history = History()
        self._facts: dict[str, Any] = {}
        self._made_with = wrapped.settings()
        self._over = -1  # the last round that the checkpoint knows
        self._last = 0  # the last one whose model is known

    @contextmanager
    def going_on(self, call: BoundArguments, initial: ArrayRecord) -> Iterator[Self]:
        """Hold the checkpoints while a strategy's `start` runs, and go on from one if it is there.

        Args:
            call: The arguments of `start`; an ``evaluate_fn`` among them is stood in for.
            initial: The model before the first round.

        Raises:
            ConfigError: If a checkpoint cannot be used, or what the strategy remembers cannot be
                kept in one.
        """
        self._facts = {
            "strategy": " in ".join(type(one).__name__ for one in reversed(self._wrapped.layers)),
            "the model before round 1": content_version(tensor_digests(view_arrays(initial))).hex(),
            **json.loads(json.dumps(dict(self._settings.facts))),
        }
        _stand_in(call, self._evaluated)
        with self._file.held():
            if (found := self._file.load()) is not None:
                self._go_on(*found, call.arguments.get("num_rounds"))
            self._check()
            yield self
            if not self._settings.keep:
                self._file.remove()

    # --- what `start` calls in place of the strategy's own ----------------------------------------

    def summary(self) -> None:
        """Log the settings."""
        self._rounds.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round, with a checkpoint of the one before it; nobody is asked if it is over."""
        if server_round <= self._over:
            return []
        if self._last > max(self._over, 0) and self._last % self._settings.every == 0:
            self._save(self._last)
        return self._rounds.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the step, or tell what a round that is over came to."""
        if server_round <= self._over:
            known = server_round == self._over and self._history.advanced
            return self._rounds.model if known else None, self._history.told(_TRAIN, server_round)
        arrays, metrics = self._rounds.aggregate_train(server_round, replies)
        self._history.advanced |= arrays is not None
        self._history.note(_TRAIN, server_round, metrics)
        self._last = server_round
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin an evaluation; nobody is asked if the round is over."""
        if server_round <= self._over:
            return []
        return self._rounds.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics, or tell what they were."""
        if server_round <= self._over:
            return self._history.told(_EVALUATE, server_round)
        metrics = self._rounds.aggregate_evaluate(server_round, replies)
        self._history.note(_EVALUATE, server_round, metrics)
        return metrics

    def _evaluated(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands in for an evaluation on the server."""

        def call(server_round: int, arrays: ArrayRecord) -> Any:
            if server_round <= self._over:
                return self._history.told(_CENTRAL, server_round)
            found = evaluate(server_round, arrays)
            self._history.note(_CENTRAL, server_round, found)
            return found

        return call

    # --- there and back ---------------------------------------------------------------------------

    def _check(self) -> None:
        """Say what will not be in checkpoints; refuse what no checkpoint can hold.

        Raises:
            ConfigError: If a strategy remembers something that cannot be written.
        """
        if names := self._wrapped.forgotten():
            text = (
                "not in checkpoints, because it is neither number, text nor array: %s; a run that "
                "depends on it needs a strategy with state() and restore() of its own"
            )
            log(WARNING, text, ", ".join(names))
        if self._forgetful:
            log(
                WARNING,
                "Flower's engine keeps what clients remember and tells nobody, so a run with this "
                "method cannot go on from a checkpoint; the engines 'ray' and 'local' can",
            )
        try:
            Packed(self._wrapped.state())
        except TypeError as error:
            raise ConfigError(
                f"{self._wrapped.name} remembers something that no checkpoint can hold: {error}; "
                "give it state() and restore(), as fl_darex.saveable says, or leave checkpoints out"
            ) from None

    def _save(self, round_: int) -> None:
        facts = {
            "round": round_,
            "fl-darex": __version__,
            "run": self._facts,
            "made with": self._made_with,
        }
        try:
            state = {
                "rounds": self._rounds.state(),
                "history": self._history.state(),
                "also": {name: one.state() for name, one in self._settings.also.items()},
                "clients": self._clients.state() if self._clients else None,
            }
            self._file.save(facts, state)
        except (OSError, TypeError, ValueError) as error:  # ValueError: protobuf's 2 GiB
            text = "round %s: no checkpoint can be written to %r (%s); the one before it stays"
            log(WARNING, text, round_, str(self._file.folder), one_line(str(error)))

    def _go_on(self, facts: dict[str, Any], state: dict[str, Any], rounds: Any) -> None:
        """Become what the checkpoint says.

        Raises:
            ConfigError: If it is of another run, or of more rounds than are asked for.
        """
        path, round_ = self._file.path, int(facts["round"])
        refuse_foreign(path, facts["run"], self._facts)
        if isinstance(rounds, int) and rounds < round_:
            raise ConfigError(
                f"{rounds} rounds are asked for, and the checkpoint {str(path)!r} is of round "
                f"{round_}; ask for more of them, or name another folder"
            )
        if self._forgetful:
            raise ConfigError(
                f"the checkpoint {str(path)!r} is of a method whose clients remember something, "
                "and Flower's engine takes no states of clients: go on with the engine 'ray' or "
                "'local'"
            )
        self._say(facts)
        try:
            self._restore(state)
        except DarexError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"the checkpoint {str(path)!r} of fl-darex {facts['fl-darex']} means nothing to "
                f"this one, {__version__} ({type(error).__name__}: {error}); go on with the "
                "version that wrote it, or remove it, and the run begins anew"
            ) from error
        self._over = self._last = round_
        log(INFO, "the run goes on after round %s, from %r", round_, str(path))

    def _restore(self, state: dict[str, Any]) -> None:
        self._rounds.restore(state["rounds"])
        self._history.restore(state["history"])
        if self._clients and state["clients"] is not None:
            self._clients.restore(state["clients"])
        for name, holder in self._settings.also.items():
            holder.restore(state["also"][name])

    def _say(self, facts: dict[str, Any]) -> None:
        """Say what differs from the run before, and does not make it another one."""
        if facts["fl-darex"] != __version__:
            text = "the checkpoint was written by fl-darex %s, and this is %s: results may differ"
            log(WARNING, text, facts["fl-darex"], __version__)
        before, now = facts["made with"], self._made_with
        odd = [name for name in now if name in before and before[name] != now[name]]
        if odd:
            shown = ", ".join(f"{name} = {before[name]!r} (not {now[name]!r})" for name in odd)
            log(WARNING, "the strategy goes on with the settings of the checkpoint: %s", shown)


def _stand_in(call: BoundArguments, stand_in: Callable[[Any], Any]) -> None:
    """Replace the evaluation on the server, wherever it is among the arguments."""
    call.apply_defaults()
    for place in (call.arguments, *call.arguments.values()):
        if isinstance(place, dict) and callable(own := place.get("evaluate_fn")):
            place["evaluate_fn"] = stand_in(own)
