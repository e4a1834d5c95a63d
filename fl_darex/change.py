"""Base + change, said once: in which precision it is added, how long it is, how counters move.

Additions and one rounding per entry, in float32 at least: IEEE arithmetic gives the same result on
every machine, so that a server and its clients hold the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which changes of tensors of a type are added: float32 or wider."""
    return np.result_type(dtype, np.float32)


def added(base: Array, change: Array, positions: NDArray[np.int64] | None = None) -> Array:
    """Return ``base + change`` in the type and shape of the base.

    Args:
        base: A floating-point tensor; it stays as it is.
        change: One number for each entry, in any shape, or for each position.
        positions: Flat positions that change; None: all.
    """
    kind = wide(base.dtype)
    with np.errstate(over="ignore"):  # a server's own step may be that large
        if positions is None:
            return (base.astype(kind, copy=False) + change.reshape(base.shape)).astype(
                base.dtype, copy=False
            )
        copy = np.array(base, order="C")
        flat = copy.reshape(-1)
        flat[positions] = (flat[positions].astype(kind, copy=False) + change).astype(base.dtype)
        return copy


def shortened(after: Array, base: Array, factor: float) -> Array:
    """Return ``base + factor * (after - base)`` in the type of the base."""
    kind = wide(base.dtype)
    change = after.astype(kind) - base
    return np.asarray(base + change * kind.type(factor), dtype=base.dtype)


def square(numbers: Iterable[Array]) -> float:
    """Return the sum of the squares of all numbers, added up in float64."""
    total = 0.0
    for part in numbers:
        flat = part.astype(np.float64).reshape(-1)
        total += float(np.vdot(flat, flat))
    return total


def holds(dtype: np.dtype[Any], values: Array) -> bool:
    """Return whether a type has room for numbers, rounded to whole ones where it is of integers.

    Args:
        dtype: Any type of real numbers or booleans.
        values: NaN is no integer; every number is a boolean.
    """
    if dtype.kind not in "iu" or not values.size or values.dtype.kind == "b":
        return True
    low, high = values.min(), values.max()  # both are NaN where there is one
    limits = np.iinfo(dtype)
    if values.dtype.kind == "f":
        # As Python's integers: float64 rounds int64's largest number up to one that does not fit.
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        low, high = np.rint(low), np.rint(high)
    return limits.min <= int(low) and int(high) <= limits.max


def steps(after: Array, base: Array) -> NDArray[np.int64]:
    """Return by how many whole numbers a counter moved, entry by entry, flattened.

    Differences are taken modulo 2**64, so that numbers above 2**53 keep every bit.
    """
    whole = np.rint(after) if after.dtype.kind == "f" else after
    with np.errstate(over="ignore"):
        moved: NDArray[np.int64] = whole.astype(np.int64) - base.astype(np.int64)
        return moved.reshape(-1)


def moved(base: Array, change: Array) -> Array:
    """Return a counter after a change, rounded to whole numbers, in the type of the base."""
    whole = np.rint(change).astype(np.int64).reshape(base.shape)
    return (base.astype(np.int64) + whole).astype(base.dtype)
