"""From a packet's numbers to integers that can be added, and from their sum to a mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import moved, steps
from fl_darex.compression.terms import Terms
from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Layout
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.masks import words
from fl_darex.secagg.messages import Stage
from fl_darex.secagg.ring import TAIL, Ring, Shape, Vector
from fl_darex.survivors import Survivors
from fl_darex.wire.codings.coding import noise_of

WEIGHT_STEPS = 2**24
"""Weights are multiples of ``max_weight`` divided by this."""

LARGEST_COUNTER = 2**23
"""Most that a counter may change in a round; times weights and clients it fits into 63 bits."""

_ROUND_OFF = 1e-5  # of norms, which are added up in other orders than clients do
_AT_ONCE = 1 << 16  # numbers: their temporaries stay in cache

Numbers = NDArray[np.float32]


def weight_steps(weight: float, stage: Stage) -> int:
    """Return a weight as a whole number of steps, at most `WEIGHT_STEPS`.

    Raises:
        DeltaError: If it is negative or not finite.
    """
    if not 0 <= weight < np.inf:
        raise DeltaError(f"the weight of this client's update is {weight}, not a number >= 0")
    return round(min(1.0, weight / stage.max_weight) * WEIGHT_STEPS)


def shape_of(layout: Layout, width: int, survivors: int) -> Shape:
    """Return the shape of a client's vector, given how many entries the mask keeps."""
    whole = sum(spec.numel for spec in layout.dense)
    return Shape(Ring(width), survivors + whole, sum(spec.numel for spec in layout.raw))


def to_vector(
    update: SparseUpdate,
    before: Mapping[str, NDArray[Any]],
    weight: float,
    stage: Stage,
    terms: Terms,
) -> Vector:
    """Return a client's integers, not yet masked.

    Rounding is random and keeps means; its seed is that of the packet's noise, so that the same
    update gives the same integers. It may be known: the integers are what is masked.

    Args:
        update: The client's own, in fp32, with one q.
        before: The tensors before training; those that are not floating point count.
        weight: Of this client.
        stage: The server's stage ``masked``: the ring, and how numbers become its integers.
        terms: What the client was told; its slot makes clients round independently.
    """
    units = weight_steps(weight, stage)
    share, shrunk = units / WEIGHT_STEPS, np.float32(1.0)
    if stage.norm and (found := update.norm(before)):
        shrunk = np.float32(min(1.0, stage.norm / found))
    layout, dense = update.layout, update.dense()
    parts = [(update.numbers(0, update.count) * shrunk, stage.range)]
    parts += [(dense[spec.name] * shrunk, stage.dense_range) for spec in layout.dense]
    noise = noise_of(terms.uplink.seed, terms.round, terms.slot)
    start, clipped, narrow = 0, 0, []
    for numbers, largest in parts:
        clipped += int(np.count_nonzero(np.abs(numbers) > largest))
        factor = share * stage.levels / largest
        narrow.append(_rounded(numbers, largest, factor, noise, start))
        start += (numbers.size + 1) & ~1
    counters, over = _changes(update, before)
    wide = [counters * units, np.array([units, clipped + over], dtype=np.int64)]
    shape = shape_of(layout, stage.width, update.count)
    integers = shape.ring.residues(np.concatenate(narrow))
    return Vector(shape, integers, np.concatenate(wide).astype(np.uint64))


@dataclass(frozen=True)
class Target:
    """What the clients' sealed packets must be, and what their sum stands for.

    Attributes:
        before: The tensors that they were sent.
        layout: Their layout.
        terms: What any of them is told: all have the same round, version, mask and q.
        counts: How many entries the mask keeps of each pruned tensor.
        weight: Name of the metric that is a client's weight; empty: all count the same.
        norm: Largest L2 norm of an update, survivors over q and dense tensors together; 0: any.
    """

    before: Mapping[str, NDArray[Any]]
    layout: Layout
    terms: Terms
    counts: tuple[int, ...]
    weight: str = ""
    norm: float = 0.0


@dataclass(frozen=True, eq=False)
class Mean:
    """What the sum of some clients says.

    Attributes:
        survivors: The weighted mean of their updates.
        weight: Sum of the clients' weights.
        clipped: Part of all numbers that were clipped.
    """

    survivors: Survivors
    weight: float
    clipped: float


def to_mean(total: Vector, target: Target, stage: Stage, clients: int) -> Mean:
    """Return the weighted mean of the updates in an unmasked sum.

    However its clients lie, none of its numbers is larger than the range, no counter moves by more
    than `LARGEST_COUNTER`, and it is no longer than the norm that was asked for.

    Args:
        total: The sum.
        target: What it stands for.
        stage: As announced to the clients.
        clients: How many vectors were added.

    Raises:
        PacketError: If no sum of such vectors has these numbers (a client lies, or a mask is left
            over), with the reason ``VALUES``; or if all weights are 0.
    """
    narrow, wide = total.signed()
    units, clipped = map(int, wide[-TAIL:])
    _check(narrow, wide, stage, clients)
    unit = WEIGHT_STEPS / (stage.levels * units)
    start, at, terms = sum(target.counts), 0, target.terms
    numbers = _scaled(narrow[:start], stage.range, unit)
    dense, raw = {}, {}
    for spec in target.layout.dense:
        part = narrow[start : start + spec.numel]
        dense[spec.name], start = _scaled(part, stage.dense_range, unit), start + spec.numel
    for spec in target.layout.raw:
        raw[spec.name] = moved(target.before[spec.name], wide[at : at + spec.numel] / units)
        at += spec.numel
    how, q = terms.uplink.how, terms.uplink.divisor
    mean = Survivors(target.layout, how.mask(terms), numbers, target.counts, dense, raw, q)
    if stage.norm:
        mean = _shortened(mean, target, stage, clients * unit)
    weight = units / WEIGHT_STEPS * stage.max_weight
    return Mean(mean, weight, clipped / max(1, clients * (narrow.size + at)))


def _check(narrow: NDArray[np.int64], wide: NDArray[np.int64], stage: Stage, clients: int) -> None:
    """Refuse numbers that no sum has.

    A mask that is left over is random and hardly fits. What a client writes into one field only is
    bound by the others: numbers and counters are multiples of the weight, but for rounding.
    """
    counters, units, clipped = wide[:-TAIL], int(wide[-2]), int(wide[-1])
    least = 0 if stage.weight else clients * WEIGHT_STEPS
    fits = (
        least <= units <= clients * WEIGHT_STEPS
        and 0 <= clipped <= clients * (narrow.size + counters.size)
        and (_largest(narrow) - clients) * WEIGHT_STEPS <= stage.levels * units
        and _largest(counters) <= units * LARGEST_COUNTER
    )
    if not fits:
        _refuse()
    if units == 0:
        raise PacketError("all masked updates of this round have weight 0", Reason.REPLY)


def _scaled(integers: NDArray[np.int64], largest: float, unit: float) -> Numbers:
    """Return the mean that a sum stands for; rounding alone takes it out of the range."""
    mean = integers * (largest * unit)
    return np.clip(mean, -largest, largest, out=mean).astype(np.float32)


def _shortened(mean: Survivors, target: Target, stage: Stage, rounding: float) -> Survivors:
    """Return a mean of updates that have a largest norm; refuse one that rounding does not explain.

    Args:
        mean: Of all clients.
        target: What it is the mean of.
        stage: With that norm.
        rounding: By how much a number may be off, in units of its range.
    """
    found = SparseUpdate.of_survivors(mean).norm(target.before)
    whole = sum(spec.numel for spec in target.layout.dense)
    off = (
        mean.count**0.5 * stage.range / target.terms.uplink.divisor,
        whole**0.5 * stage.dense_range,
    )
    if found > stage.norm * (1 + _ROUND_OFF) + rounding * np.hypot(*off):
        _refuse()
    if found <= stage.norm:
        return mean
    factor = np.float32(stage.norm / found)
    dense = {name: change * factor for name, change in mean.dense.items()}
    return replace(mean, numbers=mean.numbers * factor, dense=dense)


def _refuse() -> NoReturn:
    raise PacketError(
        "the sum of the masked updates makes no sense: a client sent something else than it was "
        "asked for",
        Reason.VALUES,
    )


def _rounded(
    numbers: Numbers, largest: float, factor: float, noise: NDArray[np.uint64], start: int
) -> NDArray[np.int64]:
    """Clip, scale and round up or down at random; ``start`` is an even place in the noise."""
    found = np.empty(numbers.size, dtype=np.int64)
    for first in range(0, numbers.size, _AT_ONCE):
        part = numbers[first : first + _AT_ONCE].astype(np.float64)
        scaled = np.clip(part, -largest, largest) * factor
        lower = np.floor(scaled)
        uniform = words(noise, start + first, (part.size + 1) & ~1)[: part.size]
        found[first : first + part.size] = lower + (uniform < (scaled - lower) * 2.0**32)
    return found


def _changes(
    update: SparseUpdate, before: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], int]:
    """Return how counters changed, clipped, and how many were."""
    new = update.counters()
    changes = [steps(new[spec.name], before[spec.name]) for spec in update.layout.raw]
    found = np.concatenate(changes) if changes else np.zeros(0, dtype=np.int64)
    kept = np.clip(found, -LARGEST_COUNTER, LARGEST_COUNTER)
    return kept, int(np.count_nonzero(kept != found))


def _largest(numbers: NDArray[np.int64]) -> int:
    return max(int(numbers.max(initial=0)), -int(numbers.min(initial=0)))
