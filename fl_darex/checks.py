"""Arguments of other people's calls: one error that says what is wanted, where the call is made.

A text in a number's place, a class in an object's or NumPy's own truth value in a count's would
else fail rounds later, or be taken for something that nobody meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np


def real(
    name: str,
    value: Any,
    wanted: str = "a number",
    holds: Callable[[float], bool] = lambda number: True,
) -> float:
    """Return a number of any kind as a float.

    Args:
        name: What the argument is called.
        value: What was given.
        wanted: What is allowed, in words.
        holds: Whether a number, which may be infinite but not NaN, is allowed.

    Raises:
        TypeError: If it is no number; texts and truth values are none.
        ValueError: If it is NaN, or a number that is not allowed.
    """
    number = numeric(name, value, wanted)
    if math.isnan(number) or not holds(number):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return number


def numeric(name: str, value: Any, wanted: str) -> float:
    """Return a number of any kind, NaN too, as a float; the `TypeError` is that of `real`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def whole(name: str, value: Any, wanted: str, holds: Callable[[int], bool]) -> int:
    """Return a whole number of any kind as an int; the arguments are those of `real`.

    Raises:
        TypeError: If it is no whole number: 2.0 and True are none.
        ValueError: If it is one that is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if not holds(int(value)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return int(value)


def positive(name: str, value: Any, wanted: str = "a finite number above 0") -> float:
    """Return a finite number above 0; errors are those of `real`."""
    return real(name, value, wanted, lambda number: 0 < number < math.inf)


def seconds(name: str, value: Any) -> float | None:
    """Return a number of seconds from 0 on, or None: for ever; errors are those of `real`."""
    wanted = "a number of seconds from 0 on, or None"
    return None if value is None else real(name, value, wanted, lambda number: number >= 0)


def flag(name: str, value: Any) -> bool:
    """Return a truth value; raise `TypeError` for all else: a text such as "false" is true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def function(name: str, value: Any, wanted: str = "a function") -> None:
    """Raise `TypeError` unless a value can be called and is no class; None is none at all."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise TypeError(f"{name} must be {wanted} or None, got {shown(value)}")


def instance(name: str, value: Any, kind: Any, wanted: str) -> None:
    """Raise `TypeError` unless a value is an object of a class; a class is no object of itself."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return what was given, in words that fit into a line."""
    if isinstance(value, type):
        return f"the class {value.__name__}; write {value.__name__}(...)"
    text = repr(value)
    return text if len(text) <= 80 else f"an object of {type(value).__name__}"
