"""What pruning leaves of a delta: the entries that survive, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.positions import Mask, Positions
from fl_darex.shown import described

Numbers = NDArray[np.floating[Any]]

Q = float | NDArray[np.float32]
"""One number for all pruned tensors, or one for each in canonical order."""


@dataclass(frozen=True, eq=False)
class Survivors:
    """The entries of a delta that survive pruning, as they were: not yet scaled by 1/q.

    Attributes:
        layout: All tensors of the model, in canonical order.
        mask: Where the survivors are.
        numbers: The delta there, tensor after tensor (shape ``(survivors,)``, in the delta's type:
            float32 or float64).
        counts: How many of them belong to each pruned tensor.
        dense: For each dense tensor, its whole delta, flattened.
        raw: For each tensor that is not floating point, its new values in its own shape.
        q: Survivors stand for ``number / q``; ``q = 1-p`` makes the sum unbiased (DARE). One
            number, or one for each pruned tensor.
    """

    __repr__ = described

    layout: Layout
    mask: Mask
    numbers: Numbers
    counts: tuple[int, ...]
    dense: Mapping[str, Numbers]
    raw: Mapping[str, NDArray[Any]]
    q: Q

    @property
    def count(self) -> int:
        """Number of pruned entries that survive."""
        return self.numbers.size

    @cached_property
    def positions(self) -> dict[str, Positions]:
        """For each pruned tensor, the sorted flat positions that survive (int64)."""
        return self.mask.in_layout(self.layout)

    @cached_property
    def values(self) -> dict[str, Numbers]:
        """For each pruned tensor, the delta where it survives: parts of ``numbers``."""
        return split(
            self.numbers, {s.name: n for s, n in zip(self.layout.pruned, self.counts, strict=True)}
        )

    def q_of(self, index: int) -> float:
        """Return the q of pruned tensor number ``index``."""
        return float(self.q if isinstance(self.q, float | int) else self.q[index])

    def rescaled(self) -> dict[str, NDArray[Any]]:
        """Return the delta that the receiver sees, one full array per tensor.

        Pruned tensors hold ``value / q`` at the survivors and 0 elsewhere; dense tensors hold
        their delta; raw tensors hold their new values.
        """
        full: dict[str, NDArray[Any]] = dict(self.raw)
        kind = self.numbers.dtype
        for index, spec in enumerate(self.layout.pruned):
            flat = np.zeros(spec.numel, dtype=kind)
            flat[self.positions[spec.name]] = self.values[spec.name] / kind.type(self.q_of(index))
            full[spec.name] = flat.reshape(spec.shape)
        for spec in self.layout.dense:
            full[spec.name] = self.dense[spec.name].reshape(spec.shape)
        return full


def split(numbers: Numbers, sizes: Mapping[str, int]) -> dict[str, Numbers]:
    """Return parts of ``numbers`` by name; they share its memory."""
    ends = np.cumsum(list(sizes.values()), dtype=np.int64)
    return dict(zip(sizes, np.split(numbers, ends[:-1]), strict=True)) if sizes else {}
