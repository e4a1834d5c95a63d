"""A budget in bytes in place of p: the fraction dropped and the coding that fit with least noise.

Dropping and then writing with a coding of error ``nmse`` makes an update's squared error
``(1 + nmse) / (1-p) - 1`` times its squared length (q = 1-p). For the same bytes 1-p is inversely
proportional to a number's bits, so what counts is ``bits * (1 + nmse)``: 1.57 for ``eden1`` and 16
for fp16. Bits are spent before p: more of them pay only once nothing has to be dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_darex import checks
from fl_darex.compression.expected import packet_bytes
from fl_darex.compression.uplink import AUTO, Uplink
from fl_darex.masks import ONE
from fl_darex.wire.codings import nature_of

CANDIDATES = ("eden1", "eden2", "eden3", "eden4", "fp16")
"""Unbiased codings whose error is known whatever is written; that of fp16 is next to nothing."""

_FEWEST = 64  # survivors: what the shortest rotation takes together
_DEVIATIONS = 4  # by which a drawn number of survivors may be above its mean, and yet fit
_DIGITS = 3  # of 1-p


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What fits into a budget.

    Attributes:
        p: Fraction dropped, in [0, 1).
        values: Name of the coding.
        up_bytes: Of a reply, about; at most the budget.
        error: Mean squared error of an update over its squared length: ``(1 + nmse) / (1-p) - 1``.
    """

    p: float
    values: str
    up_bytes: int
    error: float


def usual(p: float, values: str) -> Uplink:
    """Return the uplink of ``DarexStrategy(strategy, p, values=values)``."""
    return Uplink.of("dare", p, values=values, dense_below=AUTO)


def within(
    budget: int, tensors: Mapping[str, Any], make: Callable[[float, str], Uplink] = usual
) -> Choice:
    """Return the p and the coding with the least noise in so many bytes.

    Args:
        budget: Bytes of a client's reply in a round, its envelope included; a whole number.
        tensors: The model's, by name: NumPy arrays or torch tensors.
        make: Returns the uplink for a p and a coding, or raises `ValueError` where the other
            settings rule the coding out.

    Raises:
        TypeError: If the budget is no whole number.
        ValueError: If nothing fits, or all codings are ruled out.
    """
    wanted = "a whole number of bytes, such as 50_000"
    budget = checks.whole("budget", budget, wanted, lambda number: True)
    found: list[Choice] = []
    smallest, refused = math.inf, ValueError("there is no coding")
    for values in CANDIDATES:
        try:
            least = _least(tensors, make, values)
        except ValueError as error:
            refused = error
            continue
        smallest = min(smallest, _bytes(make(1 - least / ONE, values), tensors))
        if (choice := _largest(budget, tensors, make, values, least)) is not None:
            found.append(choice)
    if math.isinf(smallest):
        raise refused
    if not found:
        raise ValueError(
            f"{budget:,} bytes are too few: a message of this model with next to nothing in it "
            f"takes about {smallest:,}, its envelope and what is sent whole included; allowed: "
            f"{smallest:,} or more"
        )
    return min(found, key=lambda one: (one.error, one.up_bytes))


def _least(tensors: Mapping[str, Any], make: Callable[[float, str], Uplink], values: str) -> int:
    """Return the smallest keep threshold that is of use."""
    entries = sum(spec.numel for spec in make(0.5, values).fitted(tensors).layout(tensors).pruned)
    return min(ONE, max(1, math.ceil(_FEWEST * ONE / entries))) if entries else ONE


def _largest(
    budget: int,
    tensors: Mapping[str, Any],
    make: Callable[[float, str], Uplink],
    values: str,
    least: int,
) -> Choice | None:
    """Return the largest fraction that one coding has room for; None: there is none."""

    def size(keep: int) -> int:
        return _bytes(make(1 - keep / ONE, values), tensors)

    low, high = least, ONE
    if size(low) > budget:
        return None
    while high - low > 1 + (low >> 12) and size(high) > budget:  # nearer than `_DIGITS`
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    keep = high if size(high) <= budget else low
    # In a few digits: it is written in settings and logs.
    keep = max(least, math.floor(_rounded_down(keep / ONE, _DIGITS) * ONE))
    p = round(1 - keep / ONE, 9)
    made = make(p, values)
    error = (1 + nature_of(values).nmse) * ONE / made.keep - 1
    return Choice(p=p, values=values, up_bytes=_bytes(made, tensors), error=error)


def _bytes(uplink: Uplink, tensors: Mapping[str, Any]) -> int:
    """Return the bytes of a reply, with room for as many survivors as a draw may bring."""
    fitted = uplink.fitted(tensors)
    layout, share = fitted.layout(tensors), fitted.keep / ONE
    entries = sum(spec.numel for spec in layout.pruned)
    spread = math.sqrt(entries * share * (1 - share))
    more = _DEVIATIONS * spread / max(1, entries) if uplink.count == "random" else 0.0
    return packet_bytes(layout, min(1.0, share + more), fitted.values, rule=fitted.rule)


def _rounded_down(value: float, digits: int) -> float:
    scale: float = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return math.floor(value * scale) / scale
