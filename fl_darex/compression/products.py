"""Changes of low rank: a matrix as two thin ones, whose layout is what a packet has.

A matrix of n rows and m columns is the sum of r products: number c of these is column c of one
factor, ``NAME|left`` of shape (r, n), times column c of the other, ``NAME|right`` of shape (r, m).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout, TensorSpec
from fl_darex.errors import Reason
from fl_darex.positions.mask import refuse
from fl_darex.survivors import Numbers
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.reader import room_of


def rank_of(spec: TensorSpec, rank: int) -> int:
    """Return of which rank a tensor's factors are; 0: it has none, as they would not be smaller.

    Args:
        spec: A pruned tensor: the first axis counts rows, all others columns.
        rank: The highest.
    """
    if len(spec.shape) < 2 or not spec.numel:
        return 0
    rows = spec.shape[0]
    columns = spec.numel // rows
    most = min(rank, rows, columns)
    return most if most * (rows + columns) < spec.numel else 0


def factored(layout: Layout, rank: int) -> Layout:
    """Return a layout with two factors in the place of each matrix, and without tied tensors."""
    specs: list[TensorSpec] = []
    for spec in layout:
        if spec.role == "pruned" and (most := rank_of(spec, rank)):
            sizes = {"left": spec.shape[0], "right": spec.numel // spec.shape[0]}
            specs += [
                TensorSpec(f"{spec.name}|{side}", (most, size), spec.dtype, "pruned")
                for side, size in sizes.items()
            ]
        elif spec.role != "tied":
            specs.append(spec)
    return Layout(tuple(sorted(specs, key=lambda spec: spec.name)))


@dataclass(frozen=True, eq=False)
class Products:
    """The numbers of pruned tensors, of which some are there as factors.

    They are multiplied when they are asked for, and no more of them than that.

    Attributes:
        layout: The tensors'.
        values: The numbers of each pruned tensor of the factored layout, flattened.
    """

    layout: Layout
    values: Mapping[str, Numbers]

    @property
    def count(self) -> int:
        """How many numbers the tensors have."""
        return sum(spec.numel for spec in self.layout.pruned)

    def check(self, values: str) -> None:
        """Refuse factors whose product may be infinite.

        Args:
            values: The coding that they were written in.

        Raises:
            PacketError: If they do not bound it.
        """
        for spec in self.layout.pruned:
            if spec.name in self.values:
                continue
            left, right = (np.abs(one).max(axis=1).astype(float) for one in self._factors(spec))
            room = np.finfo(room_of(CODINGS[values], [spec]))
            if not float((left * right).sum()) <= float(room.max):
                refuse("holds factors whose product may be infinite", Reason.VALUES)

    def of(self, spec: TensorSpec) -> Numbers:
        """Return a pruned tensor's numbers, flattened."""
        return self._part(spec, 0, spec.numel)

    def numbers(self, start: int, end: int, scale: float = 1.0) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of all pruned tensors times ``scale``."""
        found, first = [], 0
        for spec in self.layout.pruned:
            low, high = max(start, first) - first, min(end, first + spec.numel) - first
            if low < high:
                found.append(self._part(spec, low, high))
            first += spec.numel
        numbers = np.concatenate(found or [np.empty(0, dtype=np.float32)])
        numbers *= numbers.dtype.type(scale)
        return numbers

    def _part(self, spec: TensorSpec, start: int, end: int) -> Numbers:
        if spec.name in self.values:
            return self.values[spec.name][start:end]
        left, right = self._factors(spec)
        columns = right.shape[1]
        first, last = start // columns, -(-end // columns)
        # One product after the other: the same bits however few rows are asked for.
        total = left[0, first:last, None] * right[0]
        for column, row in zip(left[1:, first:last, None], right[1:], strict=True):
            total += column * row
        flat: Numbers = total.reshape(-1)
        return flat[start - first * columns :][: end - start]

    def _factors(self, spec: TensorSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = spec.shape[0]
        left, right = (self.values[f"{spec.name}|{side}"] for side in ("left", "right"))
        rank = left.size // rows
        return left.reshape(rank, rows), right.reshape(rank, -1)
