"""Per-layer q as the official code computes it (``utils/analyticalq.py`` of vengdeng/DAREx).

Its result is set by the rounding of half precision rather than by Eq. 5: around log 40 = 3.69
half precision has steps of 0.002, so neighbouring q tie, and ties count as "worse" and end the
walk; c squared underflows to 0 below 1.7e-4. To compare with published numbers, use this; to
choose q, use the default of `fl_darex.rescaling.per_layer_q`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fl_darex.rescaling.eq5 import GAMMA, phi

Half = NDArray[np.float16]

_SKIPPED = ("lm_head", "classifier", "bias", "LayerNorm", "embeddings")
_STOP = 0.8  # of the rows
_LAST = 998
_START = np.float16(10000.0)


def is_layer(name: str) -> bool:
    """Return whether the official code gives this weight a q of its own."""
    return not any(word in name for word in _SKIPPED)


def half_sums(c: NDArray[np.float32]) -> tuple[Half, Half]:
    """Return S1 and S2 of each row of c, shape ``(outputs, inputs)``, as torch's half sums are.

    c and its square are rounded to half precision; sums are accumulated wider and rounded once.
    """
    with np.errstate(over="ignore"):
        half = c.astype(np.float16)
        s1, s2 = (x.sum(axis=1, dtype=np.float32).astype(np.float16) for x in (half, half * half))
        return s1, s2


def official_q(
    s1: Half, s2: Half, *, p: float, eta: float, gamma: float = GAMMA
) -> NDArray[np.float64]:
    """Return q of each row: signed S1, one rounding to half precision per operation.

    The walk goes over ``q = 0.001*k`` from ``k = int((1-p)*1000)`` to 998 and ends as soon as 80 %
    of the rows have ever been no better than their best so far. Two repairs: Phi has its limit
    at p = 1/2, where the official code returns NaN, and k starts at 1 at least, where it divides
    by zero.
    """
    best = np.full(s1.shape, _START)
    chosen = np.full(s1.shape, 1.0 - p)
    stopped = np.zeros(s1.shape, dtype=bool)
    noise, constant = eta**2 * phi(p), math.log(2.0 / gamma)
    for k in range(max(1, int((1.0 - p) * 1000)), _LAST + 1):
        q = k * 0.001
        with np.errstate(over="ignore", invalid="ignore"):
            bias = _times(_times(s1, 1.0 - (1.0 - p) / q), eta)
            curve = _divided(_times(s2, noise), 4.0 * q**2)
            error = np.abs(bias + _plus(curve, constant))
        better, worse = error <= best, error >= best
        best[better] = error[better]
        chosen[better] = q
        stopped |= worse
        if stopped.size and np.float32(stopped.mean(dtype=np.float32)) >= np.float32(_STOP):
            break
    return chosen


# torch on a CPU multiplies and divides half precision by a Python number in float32 and rounds the
# result, but rounds the number first where it adds. A GPU does not; q then differs by 0.001 at most
# in most layers.
def _times(x: Half, y: float) -> Half:
    return np.asarray(x.astype(np.float32) * np.float32(y)).astype(np.float16)


def _divided(x: Half, y: float) -> Half:
    return np.asarray(x.astype(np.float32) / np.float32(y)).astype(np.float16)


def _plus(x: Half, y: float) -> Half:
    return np.asarray(x.astype(np.float32) + np.float32(np.float16(y))).astype(np.float16)
