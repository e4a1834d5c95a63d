"""How numbers of results are written: the same on the page, in its copies and in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from fl_darex.study.estimates import Estimate, Reached

NOTHING = "—"
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def metric(value: float | None, sign: bool = False) -> str:
    """Return a metric to four digits behind the point; large ones to five in all."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "NaN"
    digits = max(0, 4 - len(str(int(abs(value)))) + 1) if abs(value) >= 10 else 4
    return f"{value:{'+' if sign else ''}.{digits}f}"


def estimated(value: Estimate | None, sign: bool = False) -> str:
    """Return a mean and its interval: ``0.9123 ± 0.0041`` or ``0.9123 [0.9080, 0.9160]``."""
    if value is None:
        return NOTHING
    shown = metric(value.mean, sign)
    if value.half is not None:
        return f"{shown} ± {metric(value.half)}"
    if value.ends is not None:
        low, high = (metric(end, sign) for end in value.ends)
        return f"{shown} [{low}, {high}]"
    return shown


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits that count, without an exponent."""
    if value is None:
        return NOTHING
    if not value or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.{digits - 1}e}")  # 9.999 is 10.0, with a digit less behind the point
    behind = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(behind, 0)}f}"


def reached(value: Reached | None, scale: float = 1.0) -> str:
    """Return what it took, and how many runs got there: ``1.23 (3/3)``."""
    if value is None:
        return NOTHING
    shown = NOTHING if value.mean is None else significant(value.mean / scale)
    return f"{shown} ({value.reached}/{value.runs})"


def unit_of(values: Iterable[float | None]) -> str:
    """Return the unit in which most of some byte counts are short numbers."""
    there = [value for value in values if value]
    middle = median(there) if there else UNITS["MB"]
    return next((u for u, size in reversed(UNITS.items()) if middle >= size), "kB")


def in_bytes(value: float) -> str:
    """Return bytes in the unit that fits: ``1.5 MB``."""
    unit = unit_of([value])
    # Rounded first, and written without an exponent.
    return f"{float(f'{value / UNITS[unit]:.3g}'):g} {unit}"
