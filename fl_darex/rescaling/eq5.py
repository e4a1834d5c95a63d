"""Eq. 5 of "DARE the Extreme" and its relatives, as functions of a layer's sums.

For one output i of a linear layer let ``c_ij = delta_W_ij * x_j``, ``S1 = sum_j c_ij`` and
``S2 = sum_j c_ij^2``. With a random mask that drops p and survivors divided by q, the output
changes by h with mean ``(1 - (1-p)/q) S1`` and variance ``p (1-p) S2 / q^2``. Eq. 5 chooses ::

    q(eta) = argmin_q | log(2/gamma) + eta (1 - (1-p)/q) S1 + eta^2 Phi(p) S2 / (4 q^2) |

As printed, every output with S1 < 0 wants q as large as it may be, although the sign of S1 says
nothing: h and -h are equally bad. With ``|S1|`` the problem is well posed, the outer bars have
no effect on [1-p, 1], and there is a closed form (`minimise_eq5`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

GAMMA = 0.05
"""Probability of failure in Eq. 5; the paper leaves it open, this is the official code's."""
_ROUND_OFF = 1e-12


def phi(p: float) -> float:
    """Return ``Phi(p) = (1-2p) / log((1-p)/p)``, Eq. 7; 1/2 at p = 1/2, 0 at 0 and 1.

    Raises:
        ValueError: If ``p`` is outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    if p in (0.0, 1.0):
        return 0.0
    tilt = 1.0 - 2.0 * p
    if abs(tilt) > 0.5:
        return tilt / (math.log1p(-p) - math.log(p))
    # The same, as log((1-p)/p) = 2 atanh(1-2p): 1-2p is exact here, and nothing cancels.
    return 0.5 * tilt / math.atanh(tilt) if tilt else 0.5


def check_p(p: float) -> float:
    """Return p, or refuse it: it must be in [0, 1).

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p is the fraction dropped and must be in [0, 1), got {p!r}")
    return float(p)


def eq5(
    q: ArrayLike, s1: ArrayLike, s2: ArrayLike, *, p: float, eta: float, gamma: float = GAMMA
) -> Vector:
    """Return the objective of Eq. 5 as printed; give ``abs(s1)`` for the two-sided one.

    Args:
        q: Candidates in (0, 1]; broadcast against the sums.
        s1: Sum of c over the inputs, for each output.
        s2: Sum of c squared over the inputs, for each output.
        p: Fraction dropped, in [0, 1).
        eta: Weighs noise against bias, 0 or more; higher means a larger q.
        gamma: Probability of failure, in (0, 1).
    """
    u = 1.0 / np.asarray(q, dtype=np.float64)
    constant, slope, curve = _coefficients(s1, s2, p, eta, gamma)
    return np.asarray(np.abs(constant + slope * (1.0 - (1.0 - p) * u) + curve * u * u))


def minimise_eq5(
    s1: ArrayLike, s2: ArrayLike, *, p: float, eta: float, gamma: float = GAMMA
) -> Vector:
    """Return the q in [1-p, 1] that minimises Eq. 5 exactly, for each output.

    Among equal minima the largest; an output without a delta (S1 = S2 = 0) has q = 1. With
    S1 > 0 this is ``eta Phi S2 / (2 (1-p) S1)``, clipped; with S1 < 0 (Eq. 5 as printed) the
    expression between the bars may have roots, and the larger one in the interval is the answer.
    Arguments and shapes are those of `eq5`.
    """
    constant, slope, curve = np.broadcast_arrays(*_coefficients(s1, s2, p, eta, gamma))
    keep = 1.0 - p
    with np.errstate(all="ignore"):  # what does not exist is NaN or infinite, and left out below
        vertex = slope * keep / (2.0 * curve)
        # constant + slope (1 - keep u) + curve u^2 = 0, in the form that does not cancel
        linear, free = -slope * keep, constant + slope
        half = -0.5 * (linear + np.copysign(np.sqrt(linear**2 - 4.0 * curve * free), linear))
        found = [vertex, half / curve, free / half]
    ends = [np.ones_like(slope), np.full_like(slope, 1.0 / keep)]
    u = np.stack([*(np.clip(np.nan_to_num(one, nan=1.0), 1.0, 1.0 / keep) for one in found), *ends])
    value = np.abs(constant + slope * (1.0 - keep * u) + curve * u * u)
    scale = constant + np.abs(slope) + curve  # a root is 0 up to round-off
    least = value <= value.min(axis=0) + _ROUND_OFF * scale
    return np.asarray(1.0 / np.where(least, u, np.inf).min(axis=0))


def grid_eq5(
    s1: ArrayLike, s2: ArrayLike, *, p: float, eta: float, gamma: float = GAMMA, step: float
) -> Vector:
    """Return the best q of the grid ``(1-p) + t*step <= 1``, t = 0, 1, ..., for each output.

    The two-sided Eq. 5 in float64, ties to the largest q. It is convex in 1/q, so the best
    candidate is a neighbour of the exact minimiser, and no other is looked at. Arguments and
    shapes are those of `eq5`; the sign of ``s1`` does not count.
    """
    if not step > 0.0:
        raise ValueError(f"step must be positive, got {step!r}")
    s1, s2 = np.broadcast_arrays(np.abs(np.asarray(s1, np.float64)), np.asarray(s2, np.float64))
    exact = minimise_eq5(s1, s2, p=p, eta=eta, gamma=gamma)
    last = math.floor(p / step + 1e-9)
    near = np.floor((exact - (1.0 - p)) / step) + np.arange(2, -2, -1).reshape(4, *[1] * s1.ndim)
    q = np.minimum((1.0 - p) + np.clip(near, 0, last) * step, 1.0)
    best = eq5(q, s1, s2, p=p, eta=eta, gamma=gamma).argmin(axis=0)  # the first is the largest q
    return np.asarray(np.take_along_axis(q, best[None], axis=0)[0])


def mse_optimal_q(square: float, noise: float, *, p: float) -> float:
    """Return the q that minimises a layer's expected squared change, ``(1-p) + p noise/square``.

    ``E h^2 = (1-(1-p)/q)^2 S1^2 + p (1-p) S2 / q^2``, summed over outputs and tokens. Where the
    deltas' effects cancel (``square`` small) the best is to drop the delta: q is at most 1. Without
    any delta nothing depends on q, and it is 1-p.

    Args:
        square: Sum of S1 squared over outputs (and tokens), 0 or more.
        noise: Sum of S2 over the same.
        p: Fraction dropped, in [0, 1).
    """
    keep = 1.0 - check_p(p)
    if noise == 0.0:
        return keep
    return min(1.0, keep + p * noise / square) if square > 0.0 else 1.0


def _coefficients(
    s1: ArrayLike, s2: ArrayLike, p: float, eta: float, gamma: float
) -> tuple[Vector, Vector, Vector]:
    """Return the constant, the factor of ``1 - (1-p)/q`` and that of ``1/q^2``."""
    check_eta(eta, gamma)
    noise = eta * eta * phi(check_p(p)) / 4.0
    first, second = np.asarray(s1, dtype=np.float64), np.asarray(s2, dtype=np.float64)
    return np.asarray(math.log(2.0 / gamma)), eta * first, noise * second


def check_eta(eta: float, gamma: float) -> None:
    """Refuse an eta or a gamma that Eq. 5 has no meaning for.

    Raises:
        ValueError: If ``eta`` is negative or infinite, or ``gamma`` outside (0, 1).
    """
    if not (math.isfinite(eta) and eta >= 0.0):
        raise ValueError(f"eta must be a finite number, 0 or more, got {eta!r}")
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma is a probability in (0, 1), got {gamma!r}")
