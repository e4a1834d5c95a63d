"""One q for all layers, by search: 1/q_v and 1/q_e ("DARE the Extreme", Sec. 4.1 and Alg. 2).

The paper walks a grid ``q_t = (1-p) + t*dq`` and keeps the q with the smallest error; among equals
the largest. Its loop starts at t = 1, although q >= 1-p is allowed; here t = 0 is tried too, so
the result is never worse than DARE on the data of the search. Choose q on training or held-out
data, never on the data that the result will be reported on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from fl_darex.masks import ONE
from fl_darex.rescaling.fixed import keep_rate
from fl_darex.survivors import Q, Survivors

Method = Literal["grid", "two-stage", "golden"]
Tried = tuple[tuple[float, float], ...]

_PATIENCE = 4  # the official code's: consecutive candidates that are worse than the best so far
_DECAY = 0.1  # its second stage's step over the first one's
_ROUND_OFF, _DIGITS = 1e-6, 12


class NoFiniteScore(ValueError):
    """No candidate's score is a finite number."""


class Rescalable(Protocol):
    """A model that can be moved along ``base + survivors / q``, such as a `RescaledModel`."""

    @property
    def survivors(self) -> Survivors:
        """What is divided by q."""

    def set(self, q: Q) -> None:
        """Move the model to ``base + survivors / q``."""


Objective = Callable[[], float]
"""Scores the model as it is now. Lower is better, unless its ``larger_is_better`` is true."""


@dataclass(frozen=True)
class QSearch:
    """The result of a search.

    Attributes:
        q: The best q, in (0, 1].
        score: What the objective said of it.
        tried: All (q, score) in the order in which they were tried.
    """

    q: float
    score: float
    tried: Tried


@dataclass(frozen=True)
class Line:
    """The candidates ``first + t * step`` for t in 0 .. rounds."""

    first: float
    step: float
    rounds: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise ValueError(f"step must be a positive number, got {self.step!r}")
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {self.rounds!r}")

    def at(self, t: int) -> float:
        """Return candidate number ``t``."""
        return self.first + t * self.step

    def up_to(self, highest: float) -> Line:
        """Return the candidates that are not above ``highest``."""
        last = math.floor((highest - self.first) / self.step + _ROUND_OFF)
        return Line(self.first, self.step, min(self.rounds, last))


def search_q(
    model: Rescalable,
    objective: Objective,
    *,
    p: float | None = None,
    step: float | None = None,
    rounds: int = 18,
    method: Method = "grid",
) -> QSearch:
    """Return the q in [1-p, 1] with the best score, and leave the model there.

    Args:
        model: The model to move; enter a `RescaledModel` first.
        objective: `OutputChange` for 1/q_e, `Validation` for 1/q_v, or any function that scores
            the model as it is. A score that is not finite loses against all others.
        p: Fraction dropped; None: that of the survivors' seeded mask.
        step: The grid's dq; None: half of 1-p. The paper does not say.
        rounds: The grid's N: q goes up to ``(1-p) + rounds * step``, or 1 if that is less. The
            default reaches ten times 1-p.
        method: ``"grid"``: all of Alg. 2. ``"two-stage"``: the official code's, a coarse grid and
            a tenth of its step around the best, each left after four candidates in a row that are
            worse than the best. ``"golden"``: the grid's best candidate in about
            ``1.44 * log2(rounds)`` steps if the score falls to one minimum and then rises, as the
            change of outputs does; a stepwise score such as accuracy need not.

    Raises:
        ValueError: If an option is out of range, p is not known, or no score is finite.
    """
    first = lowest_q(model.survivors, p)
    line = Line(first, first / 2 if step is None else step, rounds).up_to(1.0)
    tried, best = move_to_best(model, objective, lambda q: min(q, 1.0), line, method, highest=1.0)
    return QSearch(*best, tried)


def lowest_q(survivors: Survivors, p: float | None) -> float:
    """Return the exact keep rate: of the p given, or of a seeded mask.

    Raises:
        ValueError: If p is out of range, or is neither given nor known.
    """
    if p is not None:
        return keep_rate(p)
    if survivors.mask.chance:
        return survivors.mask.chance / ONE
    raise ValueError("p is needed: these survivors were not drawn at random, so no rate is known")


def move_to_best(
    model: Rescalable,
    objective: Objective,
    q_at: Callable[[float], Q],
    line: Line,
    method: Method,
    highest: float = math.inf,
) -> tuple[Tried, tuple[float, float]]:
    """Leave the model at the q of the best candidate, and return what `search` finds."""

    def score(x: float) -> float:
        model.set(q_at(x))
        return objective()

    larger = bool(getattr(objective, "larger_is_better", False))
    tried, best = search(score, line, method, larger, highest)
    model.set(q_at(best[0]))
    return tried, best


def search(
    score: Callable[[float], float],
    line: Line,
    method: Method,
    larger: bool,
    highest: float = math.inf,
) -> tuple[Tried, tuple[float, float]]:
    """Return all candidates with their scores, and the best: among equals the largest.

    Args:
        score: Scores one candidate; each is asked for once.
        line: The candidates.
        method: As in `search_q`.
        larger: Whether larger scores are better.
        highest: The refined grid's upper limit.

    Raises:
        ValueError: If the method is unknown.
        NoFiniteScore: If no score is finite.
    """
    errors = _Errors(score, larger)
    if method == "grid":
        _walk(errors, [line.at(t) for t in range(line.rounds + 1)], patience=0)
    elif method == "two-stage":
        _walk(errors, [line.at(t) for t in range(line.rounds + 1)], _PATIENCE)
        near = [q for q in refined(line, errors.best()) if q <= highest + _ROUND_OFF]
        _walk(errors, near, _PATIENCE)
    elif method == "golden":
        _golden(errors, line)
    else:
        raise ValueError(f"method must be 'grid', 'two-stage' or 'golden', got {method!r}")
    best = min(errors.best(), highest)  # round-off may pass the end
    tried = tuple((min(x, highest), value) for x, value in errors.scores.items())
    return tried, (best, errors.scores[errors.best()])


class _Errors:
    """Scores by candidate, as errors: lower is better, and what is not finite is the worst."""

    def __init__(self, score: Callable[[float], float], larger: bool) -> None:
        self._score, self._sign = score, -1.0 if larger else 1.0
        self._known: dict[float, float] = {}  # two stages reach one q along two sums
        self.scores: dict[float, float] = {}

    def __call__(self, x: float) -> float:
        x = self._known.setdefault(round(x, _DIGITS), x)
        if x not in self.scores:
            self.scores[x] = float(self._score(x))
        found = self._sign * self.scores[x]
        return found if math.isfinite(found) else math.inf

    def best(self) -> float:
        """Return the candidate with the smallest error; among equals the largest."""
        error, x = min((self(x), -x) for x in self.scores)
        if error == math.inf:
            raise NoFiniteScore(
                f"none of {len(self.scores)} candidates has a finite score; are the model and the "
                "batches sound at q = 1?"
            )
        return -x


def _walk(errors: _Errors, candidates: list[float], patience: int) -> None:
    best, worse = math.inf, 0
    for x in candidates:
        error = errors(x)
        worse = 0 if error <= best else worse + 1
        best = min(best, error)
        if patience and worse >= patience:
            break


def refined(line: Line, best: float) -> list[float]:
    """Return the official code's second stage: a tenth of the step on both sides of the best.

    It begins above the first candidate, or above 0 where there is none; the official code for
    decoders begins at q = 0 and divides by it.
    """
    step = line.step * _DECAY
    start = max(line.first + step, best - line.step * (1 - _DECAY))
    count = math.ceil((best + line.step - start) / step - _ROUND_OFF)
    return [start + t * step for t in range(count)]


def _golden(errors: _Errors, line: Line) -> None:
    """Try t = 0, and the candidates that a Fibonacci search for the one minimum visits."""

    def error(t: int) -> float:
        return errors(line.at(t))

    error(0)
    lengths = [1, 2]
    while lengths[-1] < line.rounds + 2:
        lengths.append(lengths[-2] + lengths[-1])
    below = -1  # the minimum lies strictly between below and below + lengths[-1]
    while len(lengths) > 2:
        left, right = below + lengths[-3], below + lengths[-2]
        lengths.pop()
        if right <= line.rounds and error(left) >= error(right):
            below = left
    error(below + 1)
