"""From a packet's numbers to integers that can be added, and from their sum to a mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.masks import words
from fl_darex.secagg.ring import Ring
from fl_darex.secagg.vector import TAIL, Shape, Vector
from fl_darex.wire.reader import Packet

WEIGHT_STEPS = 2**24
"""Weights are multiples of ``max_weight`` divided by this."""

LARGEST_COUNTER = 2**23
"""Most that a counter may change in a round; times weights and clients it fits into 63 bits."""

_AT_ONCE = 1 << 16  # numbers: their temporaries stay in cache

Numbers = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How numbers become integers; the server announces it.

    Attributes:
        range: Largest magnitude of a survivor.
        dense_range: Largest magnitude in tensors that are sent whole.
        levels: Integers on each side of 0.
        max_weight: Largest weight.
        norm: Largest L2 norm of an update, survivors over q and dense tensors; 0: any.
    """

    range: float
    dense_range: float
    levels: int
    max_weight: float
    norm: float = 0.0

    def steps(self, weight: float) -> int:
        """Return a weight as a whole number of steps, at most `WEIGHT_STEPS`.

        Raises:
            DeltaError: If it is negative or not finite.
        """
        if not 0 <= weight < np.inf:
            raise DeltaError(f"the weight of this client's update is {weight}, not a number >= 0")
        return round(min(1.0, weight / self.max_weight) * WEIGHT_STEPS)


def shape_of(layout: Layout, ring: Ring, survivors: int) -> Shape:
    """Return the shape of a client's vector, given how many entries the mask keeps."""
    whole = sum(spec.numel for spec in layout.dense)
    return Shape(ring, survivors + whole, sum(spec.numel for spec in layout.raw))


def to_vector(
    packet: Packet,
    base: Mapping[str, NDArray[Any]],
    weight: float,
    scale: Scale,
    ring: Ring,
    sender: int,
) -> Vector:
    """Return a client's integers, not yet masked.

    Rounding is random and keeps means; its seed is the packet's seed, round and sender, so that
    the same update gives the same integers. It may be known: the integers are what is masked.

    Args:
        packet: The client's own, in fp32, with one q.
        base: The tensors before training; those that are not floating point count.
        weight: Of this client.
        scale: From the server.
        ring: Wide enough for the sum.
        sender: The client's own slot, so that clients round independently.
    """
    steps = scale.steps(weight)
    share = steps / WEIGHT_STEPS
    shrunk = np.float32(_shrunk(packet, scale.norm))
    dense = packet.dense()
    parts = [(packet.numbers() * shrunk, scale.range)]
    parts += [(dense[spec.name] * shrunk, scale.dense_range) for spec in packet.layout.dense]
    noise, start, clipped, narrow = _noise(packet, sender), 0, 0, []
    for numbers, largest in parts:
        clipped += int(np.count_nonzero(np.abs(numbers) > largest))
        factor = share * scale.levels / largest
        narrow.append(_rounded(numbers, largest, factor, noise, start))
        start += (numbers.size + 1) & ~1
    counters, over = _changes(packet, base)
    wide = [counters * steps, np.array([steps, clipped + over], dtype=np.int64)]
    shape = shape_of(packet.layout, ring, parts[0][0].size)
    integers = np.concatenate(narrow)
    return Vector(shape, ring.residues(integers), np.concatenate(wide).astype(np.uint64))


@dataclass(frozen=True, eq=False)
class Mean:
    """What the sum of some clients says.

    Attributes:
        survivors: Weighted mean of the survivors, not divided by q.
        dense: Weighted mean of each dense tensor's delta, flattened.
        raw: For each tensor that is not floating point, its old value plus the mean change.
        weight: Sum of the clients' weights.
        clipped: Part of all numbers that were clipped.
    """

    survivors: Numbers
    dense: dict[str, Numbers]
    raw: dict[str, NDArray[Any]]
    weight: float
    clipped: float


def to_mean(
    total: Vector, base: Mapping[str, NDArray[Any]], layout: Layout, scale: Scale, clients: int
) -> Mean:
    """Return the weighted mean of the updates in an unmasked sum.

    Args:
        total: The sum.
        base: The tensors before training.
        layout: Of the model.
        scale: As announced.
        clients: How many vectors were added.

    Raises:
        PacketError: If no sum of such vectors has these numbers (a mask is left over), or all
            weights are 0.
    """
    narrow, wide = total.signed()
    steps, clipped = (int(number) for number in wide[-TAIL:])
    _check(narrow, wide, steps, clipped, total.shape, scale, clients)
    unit = WEIGHT_STEPS / (scale.levels * steps)
    whole = sum(spec.numel for spec in layout.dense)
    kept = narrow.size - whole
    survivors = (narrow[:kept] * (scale.range * unit)).astype(np.float32)
    dense, raw, start, at = {}, {}, kept, 0
    for spec in layout.dense:
        part = narrow[start : start + spec.numel] * (scale.dense_range * unit)
        dense[spec.name], start = part.astype(np.float32), start + spec.numel
    for spec in layout.raw:
        change = np.rint(wide[at : at + spec.numel] / steps).astype(np.int64)
        moved = base[spec.name].astype(np.int64) + change.reshape(spec.shape)
        raw[spec.name], at = moved.astype(base[spec.name].dtype), at + spec.numel
    weight = steps / WEIGHT_STEPS * scale.max_weight
    return Mean(survivors, dense, raw, weight, clipped / max(1, clients * _count(total.shape)))


def _noise(packet: Packet, sender: int) -> NDArray[np.uint64]:
    header = packet.header
    text = f"darex.noise.v1|{header.seed}|{header.round}|{sender}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.array([int.from_bytes(digest, "little")], dtype=np.uint64)


def _shrunk(packet: Packet, norm: float) -> float:
    """Return what an update is multiplied by so that it is no longer than allowed."""
    if not norm:
        return 1.0
    parts = [packet.numbers().astype(np.float64) / packet.q_of(0)]
    parts += [change.astype(np.float64) for change in packet.dense().values()]
    found = float(np.sqrt(sum(np.vdot(part, part) for part in parts)))
    return min(1.0, norm / found) if found else 1.0


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


def _changes(packet: Packet, base: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int64], int]:
    """Return how counters changed, clipped, and how many were."""
    new = packet.raw()
    changes = [
        (new[spec.name].astype(np.int64) - base[spec.name].astype(np.int64)).reshape(-1)
        for spec in packet.layout.raw
    ]
    found = np.concatenate(changes) if changes else np.zeros(0, dtype=np.int64)
    kept = np.clip(found, -LARGEST_COUNTER, LARGEST_COUNTER)
    return kept, int(np.count_nonzero(kept != found))


def _check(
    narrow: NDArray[np.int64],
    wide: NDArray[np.int64],
    steps: int,
    clipped: int,
    shape: Shape,
    scale: Scale,
    clients: int,
) -> None:
    """Refuse numbers that no sum has: a mask that is left over is random and hardly fits."""
    largest, counters = _largest(narrow), _largest(wide[:-TAIL])
    fits = (
        0 <= steps <= clients * WEIGHT_STEPS
        and 0 <= clipped <= clients * _count(shape)
        and largest <= clients * scale.levels
        and counters <= clients * WEIGHT_STEPS * LARGEST_COUNTER
    )
    if not fits:
        raise PacketError("the sum of the masked updates makes no sense", Reason.VALUES)
    if steps == 0:
        raise PacketError("all masked updates of this round have weight 0", Reason.REPLY)


def _count(shape: Shape) -> int:
    return shape.narrow + shape.counters


def _largest(numbers: NDArray[np.int64]) -> int:
    return max(int(numbers.max(initial=0)), -int(numbers.min(initial=0)))
