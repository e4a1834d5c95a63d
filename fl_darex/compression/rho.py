"""rho: how much the clients of a round agree, measured from their packets.

``rho = ||mean of x_i||**2 / mean of ||x_i||**2`` over the clients' unpruned updates x_i: 1 where
all are the same, 1/n where n clients are orthogonal. It says what masks do to the mean (`noise`):
where clients agree, independent masks are better than a shared one, and masks that share no entry
better still; where clients are orthogonal it does not matter.

A client's packet holds ``s_i``, its x_i where its mask keeps it, every entry with probability k. So
``||s_i||**2`` is ``k ||x_i||**2`` on average, and ``s_i . s_j`` is ``k**2 x_i . x_j`` where masks
are independent, ``k x_i . x_j`` where one is shared. All cross products together are the squared
norm of the sum minus those of its parts: nothing is compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import Array
from fl_darex.masks import ONE

_ROW = 1 << 12
LANES = 64
"""Sums of squares that are kept apart; a power of two. Long enough for NumPy's inner loop."""


@dataclass(frozen=True)
class Norms:
    """What a sum of packets says of how its parts lie to each other.

    Attributes:
        weights: What each client's survivors were multiplied by.
        own: The squared norm of each client's survivors, multiplied by its weight.
        total: The squared norm of the sum.
        survivors: How many a client has, on average.
    """

    weights: tuple[float, ...]
    own: tuple[float, ...]
    total: float
    survivors: float


class Rho(NamedTuple):
    """An estimate.

    Attributes:
        value: Unbiased but for the division by a mean, so that it may lie below 0 or above 1.
        error: Its standard error from the masks alone, if entries are of about the same size.
    """

    value: float
    error: float

    @property
    def bounded(self) -> float:
        """The nearest number that rho can be, in [0, 1]."""
        return min(1.0, max(0.0, self.value))


def squared(numbers: Array) -> float:
    """Return the sum of the squares of a vector; infinity where one overflows.

    In rows that stay in cache, and not by BLAS, whose threads would take longer than the sums.
    """
    whole = numbers.size // _ROW * _ROW
    rows, rest = numbers[:whole].reshape(-1, _ROW), numbers[whole:]
    with np.errstate(over="ignore"):
        parts = np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64)
        return float(parts + np.einsum("i,i->", rest, rest))


@np.errstate(over="ignore")
def add_squares(lanes: NDArray[np.float64], numbers: Array, first: int) -> None:
    """Add the square of number i, of a vector read part by part, to lane ``i % LANES``.

    In float64 and from front to back, so that the parts do not change a bit, nor does a compiled
    loop.

    Args:
        lanes: Shape ``(LANES,)``; changed.
        numbers: The part.
        first: The number of its first one.
    """
    squares = numbers.astype(np.float64)
    squares *= squares
    head = min(-first % LANES, squares.size)
    whole = (squares.size - head) // LANES * LANES + head
    lanes[first % LANES :][:head] += squares[:head]
    if whole > head:
        rows = squares[head:whole].reshape(-1, LANES)
        rows[0] += lanes
        np.add.reduce(rows, axis=0, out=lanes)
    lanes[: squares.size - whole] += squares[whole:]


def meeting(mask: str, keep: int) -> float | None:
    """Return the probability with which a client keeps what another one keeps.

    Args:
        mask: ``"client"``, ``"round"`` or ``"disjoint"``.
        keep: Keep threshold in [1, ONE].

    Returns:
        The probability; None where nothing can be said: disjoint masks never meet.
    """
    if keep == ONE or mask == "round":
        return 1.0
    return keep / ONE if mask == "client" else None


def rho(norms: Norms, keep: int, meet: float, nmse: float = 0.0) -> Rho | None:
    """Return rho over what packets prune; with the weights of the mean that was formed.

    Args:
        norms: Of the sum of the packets.
        keep: Keep threshold of each mask in [1, ONE].
        meet: From `meeting`.
        nmse: Squared error of the value coding relative to the squared norm of what is coded; its
            errors are independent among clients and 0 on average.

    Returns:
        The estimate; None with fewer than two clients that count, or where nothing changed.
    """
    share, weight = keep / ONE, math.fsum(norms.weights)
    counted = [(w, own) for w, own in zip(norms.weights, norms.own, strict=True) if w > 0.0]
    # Of weight * x_i: the squared norm, before pruning and coding.
    whole = [own / share / (1.0 + nmse) for _, own in counted]
    mean = math.fsum(one / w for one, (w, _) in zip(whole, counted, strict=True))
    if len(counted) < 2 or not mean > 0.0 or not math.isfinite(norms.total + mean):
        return None
    cross = (norms.total - math.fsum(own for _, own in counted)) / (share * meet)
    value = (math.fsum(whole) + cross) / (weight * mean)
    spread = (1.0 - share * meet) / (meet * max(norms.survivors, 1.0))
    return Rho(value, math.sqrt(2.0 * spread) / effective([w for w, _ in counted]))


def effective(weights: Sequence[float]) -> float:
    """Return how many clients of equal weight average as well; at most as many as there are."""
    return math.fsum(weights) ** 2 / math.fsum(w * w for w in weights)


def noise(mask: str, keep: int, clients: float, rho: float, beside: float = 1.0) -> float:
    """Return the variance that dropping adds to the mean, over the clients' mean squared norm.

    With p = 1 - k: independent masks ``p / k / n``, one shared mask ``p / k * rho``, disjoint ones
    ``p / k / n - (rho - 1 / n)``, which is ``1 / (n k) - rho``.

    Args:
        mask: ``"client"``, ``"round"`` or ``"disjoint"``.
        keep: Keep threshold in [1, ONE].
        clients: n, as `effective` counts them.
        rho: In [0, 1].
        beside: Of disjoint masks: the part of pairs of clients that are in one group; pairs of
            different groups have independent masks.
    """
    alone = (ONE / keep - 1.0) / clients
    if mask == "round":
        return alone * clients * rho
    return alone - beside * (rho - 1.0 / clients) if mask == "disjoint" else alone
