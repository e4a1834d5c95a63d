"""What pruning leaves of a delta, and the numbers from which both ends derive where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex import masks
from fl_darex.delta import Layout


@dataclass(frozen=True)
class SeededMask:
    """The numbers from which both ends derive the same random mask.

    Attributes:
        seed: The run's seed, in [0, 2**64).
        round: The federated round, from 0.
        slot: The client's partition, or -1 for the mask that all clients of a round share.
        kept: Keep threshold in units of 2**-32 (`fl_darex.masks.keep_threshold`).

    Raises:
        ValueError: If seed or round is outside [0, 2**64), where a packet could not carry it.
    """

    seed: int
    round: int
    slot: int
    kept: int

    def __post_init__(self) -> None:
        for name in ("seed", "round"):
            if not 0 <= getattr(self, name) < 1 << 64:
                raise ValueError(f"{name} must be in [0, 2**64), got {getattr(self, name)}")


def seeded_positions(layout: Layout, mask: SeededMask) -> dict[str, NDArray[np.int64]]:
    """Return the surviving flat positions of every pruned tensor, from the seed alone."""
    return {
        spec.name: masks.survivors(
            masks.mask_key(mask.seed, mask.round, mask.slot, spec.name), spec.numel, mask.kept
        )
        for spec in layout.pruned
    }


@dataclass(frozen=True)
class Survivors:
    """The entries of a delta that survive pruning, as they were: not yet scaled by 1/q.

    Attributes:
        layout: All tensors of the model, in canonical order.
        positions: For each pruned tensor, the sorted flat positions that survive (int64).
        values: For each pruned tensor, the delta there (float32, same length).
        dense: For each dense tensor, its whole delta, flattened (float32).
        raw: For each tensor that is not floating point, its new values in its own shape.
        q: Survivors stand for ``value / q``; ``q = 1-p`` makes the sum unbiased (DARE).
        mask: Where the positions come from.
    """

    layout: Layout
    positions: Mapping[str, NDArray[np.int64]]
    values: Mapping[str, NDArray[np.float32]]
    dense: Mapping[str, NDArray[np.float32]]
    raw: Mapping[str, NDArray[Any]]
    q: float
    mask: SeededMask

    @property
    def count(self) -> int:
        """Number of pruned entries that survive."""
        return sum(values.size for values in self.values.values())

    def rescaled(self) -> dict[str, NDArray[Any]]:
        """Return the delta that the receiver sees, one full array per tensor.

        Pruned tensors hold ``value / q`` at the survivors and 0 elsewhere; dense tensors hold
        their delta; raw tensors hold their new values.
        """
        full: dict[str, NDArray[Any]] = dict(self.raw)
        for spec in self.layout.pruned:
            flat = np.zeros(spec.numel, dtype=np.float32)
            flat[self.positions[spec.name]] = self.values[spec.name] / np.float32(self.q)
            full[spec.name] = flat.reshape(spec.shape)
        for spec in self.layout.dense:
            full[spec.name] = self.dense[spec.name].reshape(spec.shape)
        return full
