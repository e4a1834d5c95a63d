"""``server-validation``: the server chooses q for a round, along the step that it is to take.

q enters linearly: ``theta(q) = base + (q_0 / q) * (mean - base)``, so the average is formed once
and its length is what is searched (DAREx-q, "DARE the Extreme", Sec. 4.1, with the server's
held-out examples in place of a client's). With groups, each group's part of the step is then
searched in the same way, one after the other, and keeps the length that it had where no other has a
smaller loss: the loss is never larger than that of one q for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex import checks
from fl_darex.delta import Layout
from fl_darex.rescaling.search import Line, NoFiniteScore, search
from fl_darex.survivors import Q

Validate = Callable[[Mapping[str, NDArray[Any]]], float]
"""Returns the loss of a model on examples that are held out."""

_LARGEST = 16.0
"""How many times 1-p the largest q is at most. At 1 the step would all but vanish at p = .99."""

_ROUNDS = 12
"""Candidates lie even on a logarithmic scale, 13 of them, and a golden section looks at about 7."""

_GROUPS = 16
"""At most: each is 7 more looks at the examples."""

_BLOCK = re.compile(r"(.*?(?:^|[./]))(\d+)(?:[./]|$)")
_Key = tuple[str, int]


def choose_q(
    validate: Validate,
    base: Mapping[str, NDArray[Any]],
    mean: dict[str, NDArray[Any]],
    layout: Layout,
    first: float,
    grouped: bool = False,
) -> Q:
    """Return the q with the smallest loss, and shorten the step in ``mean`` accordingly.

    Args:
        validate: The loss of a model.
        base: The model before the step.
        mean: The model after it, with q = ``first``; its pruned tensors are changed in place.
        layout: Which tensors are pruned; the others' step has nothing to do with q.
        first: The smallest q that is tried, 1-p.
        grouped: Whether each of `groups_of` has a q of its own.

    Returns:
        One number, the smallest of those with that loss; with two groups or more, one for each
        pruned tensor.

    Raises:
        TypeError: If the loss is no number.
    """
    names = [spec.name for spec in layout.pruned]
    step = _Step(validate, base, mean, names, first)
    exponent, loss = step.best(names, 0.0, math.inf)
    if loss == math.inf:
        log(WARNING, "the validation loss is not finite for any q; q = 1-p is taken")
    groups = groups_of(names) if grouped and loss < math.inf else []
    if len(groups) < 2:
        return step.q_at(exponent)
    exponents: dict[str, float] = {}
    for group in groups:
        own, loss = step.best(group, exponent, loss)
        exponents |= dict.fromkeys(group, own)
    return np.array([step.q_at(exponents[name]) for name in names], dtype=np.float32)


class _Step:
    """The step of a round, each tensor's part of a length of its own."""

    def __init__(
        self,
        validate: Validate,
        base: Mapping[str, NDArray[Any]],
        mean: dict[str, NDArray[Any]],
        names: Iterable[str],
        first: float,
    ) -> None:
        self._validate, self._base, self._mean, self._first = validate, base, mean, first
        self._parts = {name: mean[name] - base[name] for name in names}
        self._largest = min(1.0, _LARGEST * first)

    def q_at(self, exponent: float) -> float:
        """Return a candidate: 0 is the first, `_ROUNDS` the largest."""
        return float(self._first * (self._largest / self._first) ** (exponent / _ROUNDS))

    def best(self, names: Sequence[str], now: float, lowest: float) -> tuple[float, float]:
        """Leave some tensors at the candidate with the smallest loss; return it and the loss.

        Args:
            names: The tensors that are moved; the others stay where they are.
            now: The candidate that is kept unless another one's loss is smaller.
            lowest: Its loss.
        """

        def loss(exponent: float) -> float:
            self._move(names, exponent)
            return _number(self._validate(self._mean))

        try:
            tried, (_, found) = search(loss, Line(0.0, 1.0, _ROUNDS), "golden", larger=False)
            # Where the loss does not tell lengths apart, nothing speaks for a shorter step.
            exponent = min(one for one, seen in tried if seen == found)
        except NoFiniteScore:
            exponent, found = now, lowest
        if not found < lowest:
            exponent, found = now, lowest
        self._move(names, exponent)
        return exponent, found

    def _move(self, names: Sequence[str], exponent: float) -> None:
        factor = self._first / self.q_at(exponent)
        for name in names:
            part, out = self._parts[name], self._mean[name]
            np.multiply(part, np.asarray(factor, part.dtype), out=out)
            out += self._base[name]


def _number(loss: Any) -> float:
    """Return what `validate` returned as a number, if it is one: of any library, never a text."""
    try:
        if not isinstance(loss, str | bytes):
            return float(loss)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"validate must return the loss, a number, got {checks.shown(loss)}")


def groups_of(names: Iterable[str]) -> list[list[str]]:
    """Return tensors in at most 16 groups: those of one module, or of one repeated block.

    A block is named by the first number among the parts of a name: ``encoder.layers.3``. What has
    none goes by its first part, such as ``classifier``. Where these are too many, neighbours are
    put together.
    """
    found: dict[_Key, list[str]] = {}
    for name in names:
        block = _BLOCK.match(name)
        key = (block[1], int(block[2])) if block else (re.split("[./]", name)[0], -1)
        found.setdefault(key, []).append(name)
    keys = sorted(found)
    modules = [key for key in keys if key[1] < 0]
    blocks = [key for key in keys if key[1] >= 0]
    joined = _joined(modules, _GROUPS - bool(blocks))
    joined += _joined(blocks, _GROUPS - len(joined))
    return [[name for key in some for name in found[key]] for some in joined]


def _joined(keys: list[_Key], most: int) -> list[list[_Key]]:
    """Return neighbours together, in as many parts of about one size as there may be."""
    parts = min(most, len(keys))
    bounds = [len(keys) * part // parts for part in range(parts)] + [len(keys)]
    return [keys[start:end] for start, end in pairwise(bounds)]
