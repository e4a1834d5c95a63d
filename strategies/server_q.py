"""``server-validation``: the server chooses q for a round, along the step that it is to take.

q enters linearly: ``theta(q) = base + (q_0 / q) * (mean - base)``, so the average is formed once
and its length is what is searched (DAREx-q, "DARE the Extreme", Sec. 4.1, with the server's
held-out examples in place of a client's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.rescaling.search import Line, search

Validate = Callable[[Mapping[str, NDArray[Any]]], float]
"""Returns the loss of a model on examples that are held out."""

_LARGEST = 16.0
"""How many times 1-p the largest q is at most. At 1 the step would all but vanish at p = .99."""

_ROUNDS = 12
"""Candidates lie even on a logarithmic scale, 13 of them, and a golden section looks at about 7."""


def choose_q(
    validate: Validate,
    base: Mapping[str, NDArray[Any]],
    mean: dict[str, NDArray[Any]],
    layout: Layout,
    first: float,
) -> float:
    """Return the q with the smallest loss, and shorten the step in ``mean`` accordingly.

    Args:
        validate: The loss of a model.
        base: The model before the step.
        mean: The model after it, with q = ``first``; its pruned tensors are changed in place.
        layout: Which tensors are pruned; the others' step has nothing to do with q.
        first: The smallest q that is tried, 1-p.
    """
    names = [spec.name for spec in layout.pruned]
    steps = {name: mean[name] - base[name] for name in names}
    largest = min(1.0, _LARGEST * first)

    def q_at(exponent: float) -> float:
        return float(first * (largest / first) ** (exponent / _ROUNDS))

    def move(q: float) -> None:
        for name in names:
            np.multiply(steps[name], np.asarray(first / q, steps[name].dtype), out=mean[name])
            mean[name] += base[name]

    def loss(exponent: float) -> float:
        move(q_at(exponent))
        return validate(mean)

    try:
        _, (best, _) = search(loss, Line(0.0, 1.0, _ROUNDS), "golden", larger=False)
    except ValueError:  # no loss is a finite number
        log(WARNING, "the validation loss is not finite for any q; q = 1-p is taken")
        best = 0.0
    q = q_at(best)
    move(q)
    return q
