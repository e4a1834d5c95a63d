"""A fixed rescaling factor 1/q."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real

import numpy as np

from fl_darex.masks import ONE, keep_threshold
from fl_darex.survivors import Survivors


def rescale(survivors: Survivors, q: float | str) -> Survivors:
    """Return the same survivors, to be divided by another q.

    ``q = "dare"`` is the exact keep rate, which makes the rescaled delta unbiased (1 where the
    positions were chosen by the values, so that no q does); a larger q
    trades bias for less noise (DAREx-q, "DARE the Extreme", Sec. 4.1); ``q = 1`` only drops.

    Raises:
        ValueError: If ``q`` is neither ``"dare"`` nor a number in (0, 1].
    """
    return replace(survivors, q=resolve_q(q, survivors.mask.chance or ONE))


def resolve_q(q: float | str, kept: int) -> float:
    """Return q as a number: ``"dare"`` is ``kept / 2**32``, a number in (0, 1] is itself.

    Raises:
        ValueError: If ``q`` is neither.
    """
    if q == "dare":
        return kept / ONE
    number = isinstance(q, Real) and not isinstance(q, bool) and 0.0 < q < 2.0  # float32 holds it
    if not number or not 0.0 < np.float32(q) <= 1.0:
        raise ValueError(f"q must be 'dare' (q = 1-p) or a number in (0, 1], got {q!r}")
    return float(q)


def keep_rate(p: float) -> float:
    """Return the exact keep rate of masks that drop p, the smallest q that makes sense for them.

    It differs from 1-p by at most 2**-33; a receiver refuses a smaller q.

    Raises:
        ValueError: If ``p`` is outside [0, 1).
    """
    return keep_threshold(p) / ONE
