"""How far dropping moves an output: exact moments of h_diff, and bounds that hold (Thm 3.1).

Each entry of a row is dropped with probability p and divided by q if it survives, so the output
moves by ``h = sum_j (1 - delta_j / q) c_j`` with ``delta_j ~ Bernoulli(1-p)``. All that matters
of the row are ``S1 = sum_j c_j`` and ``S2 = sum_j c_j^2``
(`fl_darex.analysis.influence`). "DARE the Extreme", ICLR 2025, Eq. 2, Thm 3.1, App. E.

The theorem as it is printed takes ``sqrt(2p(1-p))`` for p > 1/2 from Berend & Kontorovich, "On
the concentration of the missing mass", 2013, Lemma 5. That lemma bounds one side only, so it is
no bound on ``|h|``: with one entry c = 1 and p = .99 it promises ``|h| <= 34.4`` with probability
.995, but ``|h| = 99`` with probability .01. The valid constant for both sides, and the smallest
one, is that of Kearns & Saul, https://arxiv.org/abs/1301.7392, Thm 2: ``sqrt(Phi(p))``.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_darex.rescaling.eq5 import phi

Rows = TypeVar("Rows", float, NDArray[np.float64])
"""One output's sum, or those of all outputs of a layer, shape ``(m,)``."""

HOEFFDING = math.sqrt(0.5)
"""Hoeffding's constant: it does not know p."""


def kearns_saul(p: float) -> float:
    """Return ``sqrt(Phi(p))``: the smallest constant that bounds both sides for every row."""
    return math.sqrt(phi(p))


def berend_kontorovich(p: float) -> float:
    """Return ``sqrt(2p(1-p))``, the scale of the central limit theorem.

    It bounds one side only: for ``p >= 1/2`` and c >= 0, that too few entries survive.
    """
    return math.sqrt(2.0 * p * (1.0 - p))


def printed_psi(p: float) -> float:
    """Return Psi(p) as Thm 3.1 prints it; not a valid constant, kept for comparison.

    For ``p <= 1/2`` the square root of Phi is missing (the proof's Eq. 8 has it), so Psi jumps
    from .5 to .7071 at 1/2; for ``p > 1/2`` it is `berend_kontorovich`, which bounds one side only.
    """
    return phi(p) if p <= 0.5 else berend_kontorovich(p)


def h_diff_mean(first: Rows, p: float, q: float | None = None) -> Rows:
    """Return ``E h = (1 - (1-p)/q) S1``: 0 for ``q = 1-p``.

    Args:
        first: S1.
        p: Fraction dropped, in [0, 1).
        q: What survivors are divided by, in (0, 1]; None: 1-p.

    Raises:
        ValueError: If ``p`` or ``q`` is outside its range.
    """
    q = _divisor(p, q)
    return (1.0 - (1.0 - p) / q) * first


def h_diff_variance(second: Rows, p: float, q: float | None = None) -> Rows:
    """Return ``Var h = p(1-p) S2 / q^2``: ``p/(1-p) S2`` for ``q = 1-p``.

    Args:
        second: S2.
        p: Fraction dropped, in [0, 1).
        q: What survivors are divided by, in (0, 1]; None: 1-p.

    Raises:
        ValueError: If ``p`` or ``q`` is outside its range.
    """
    q = _divisor(p, q)
    return p * (1.0 - p) / q**2 * second


def h_diff_bound(
    first: Rows, second: Rows, p: float, *, gamma: float, q: float | None = None
) -> Rows:
    """Return a bound that ``|h|`` stays below with probability 1-gamma or more.

    ``|1 - (1-p)/q| |S1| + sqrt(Phi(p) S2 log(2/gamma)) / q``: the exact mean and the deviation of
    Kearns & Saul. With ``q = 1-p`` the mean is 0 and this is Thm 3.1 with a valid constant
    (Eq. 8); ``p = 0`` and ``q = 1`` give 0. It holds for each output by itself, not for all of
    them at once.

    Args:
        first: S1; its mean over tokens does not do: the bound is for one x.
        second: S2 of the same x.
        p: Fraction dropped, in [0, 1).
        gamma: Probability of failure, in (0, 1). Smaller means a larger bound.
        q: What survivors are divided by, in (0, 1]; None: 1-p.

    Raises:
        ValueError: If ``p``, ``q`` or ``gamma`` is outside its range.
    """
    return abs(h_diff_mean(first, p, q)) + _deviation(kearns_saul(p), second, p, gamma, q)


def hoeffding_bound(
    first: Rows, second: Rows, p: float, *, gamma: float, q: float | None = None
) -> Rows:
    """Return the same bound with Hoeffding's constant: valid, and never smaller.

    Raises:
        ValueError: If ``p``, ``q`` or ``gamma`` is outside its range.
    """
    return abs(h_diff_mean(first, p, q)) + _deviation(HOEFFDING, second, p, gamma, q)


def printed_bound(second: Rows, p: float, *, gamma: float) -> Rows:
    """Return the bound that Thm 3.1 prints, for ``q = 1-p``; it does not hold for ``p > 1/2``.

    See `printed_psi`; use `h_diff_bound` where something depends on it. For ``p > 1/2`` and many
    entries of like size it tells the order of magnitude.

    Raises:
        ValueError: If ``p`` or ``gamma`` is outside its range.
    """
    return _deviation(printed_psi(p), second, p, gamma, None)


def chernoff_bound(
    first: Rows,
    second: Rows,
    p: float,
    *,
    gamma: float,
    eta: float,
    q: float | None = None,
) -> Rows:
    """Return the bound on ``|h|`` for one eta, from which Eq. 5 chooses q for each layer.

    ``log(2/gamma)/eta + |1 - (1-p)/q| |S1| + eta Phi(p) S2 / (4 q^2)``: the objective of Eq. 5
    divided by eta (Eq. 12 leaves eta out on its left side), with ``|S1|``, so that both sides are
    bounded. It holds for every eta > 0, and its minimum over eta is `h_diff_bound`.

    Args:
        first: S1.
        second: S2.
        p: Fraction dropped, in [0, 1).
        gamma: Probability of failure, in (0, 1).
        eta: Where the Laplace transform is taken, above 0.
        q: What survivors are divided by, in (0, 1]; None: 1-p.

    Raises:
        ValueError: If ``p``, ``q``, ``gamma`` or ``eta`` is outside its range.
    """
    if not 0.0 < eta < math.inf:
        raise ValueError(f"eta must be a number above 0, got {eta!r}")
    mean = abs(h_diff_mean(first, p, q))
    spread = eta * phi(p) / (4.0 * _divisor(p, q) ** 2)
    return mean + spread * second + _log_term(gamma) / eta


def _deviation(constant: float, second: Rows, p: float, gamma: float, q: float | None) -> Rows:
    scale = constant / _divisor(p, q) * math.sqrt(_log_term(gamma))
    root: Rows = second**0.5
    return scale * root


def _log_term(gamma: float) -> float:
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must be in (0, 1), got {gamma!r}; it is a probability of failure")
    return math.log(2.0 / gamma)


def _divisor(p: float, q: float | None) -> float:
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p!r}; nothing would survive")
    if q is None:
        return 1.0 - p
    if not 0.0 < q <= 1.0:
        raise ValueError(f"q must be in (0, 1], got {q!r}; q = 1-p is DARE, q = 1 only drops")
    return q
