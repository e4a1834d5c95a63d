"""The entries with the largest scores: of the whole model, of each tensor, or of each row.

Importance-based pruning keeps exactly k entries; equal scores survive in canonical order and
entries that did not change never survive, so there are fewer than k where less has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from fl_darex.delta import Delta, TensorSpec
from fl_darex.errors import nearest
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, Positions
from fl_darex.pruning.gather import gather
from fl_darex.pruning.largest import as_bits, largest
from fl_darex.survivors import Numbers, Survivors

Scope = Literal["layer", "row", "global"]
"""Among which entries the largest are chosen: one tensor's (the paper), one output row's of a
tensor (Sun et al., WANDA), or all."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

_AT_ONCE = 1 << 20  # entries: their temporaries stay in cache

Score = Callable[[TensorSpec], Numbers]


def kept_count(numel: int, keep: int) -> int:
    """Return how many of ``numel`` entries survive: ``numel * keep / 2**32``, rounded half up."""
    return (numel * keep + ONE // 2) // ONE


def keep_largest(delta: Delta, keep: int, scope: str, score: Score, mask: ListedMask) -> Survivors:
    """Keep the entries with the largest scores; q is 1, as the paper does not rescale them.

    One tensor's scores are in memory at a time.

    Args:
        delta: What changed.
        keep: Keep threshold in units of 2**-32 (`fl_darex.masks.keep_threshold`).
        scope: Among which entries.
        score: Returns the scores of one tensor, flattened, 0 or more, as float32 or float64;
            0 never survives.
        mask: Whose packet it becomes, still without positions.

    Raises:
        ValueError: If ``scope`` is not allowed.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {scope!r}{nearest(scope, SCOPES)}")
    specs = {spec.name: spec for spec in delta.layout.pruned}
    if scope == "global":
        numel = sum(spec.numel for spec in specs.values())
        where = largest(_Scores(specs, score), kept_count(numel, keep))
    elif scope == "layer":
        where = {}
        for name, spec in specs.items():
            where |= largest({name: score(spec)}, kept_count(spec.numel, keep))
    else:
        where = {name: _by_row(spec, score(spec), keep) for name, spec in specs.items()}
    return gather(delta, replace(mask, where=where), 1.0)


class _Scores(Mapping[str, Numbers]):
    """Scores by tensor that are worked out whenever they are asked for."""

    def __init__(self, specs: Mapping[str, TensorSpec], score: Score) -> None:
        self._specs, self._score = specs, score

    def __getitem__(self, name: str) -> Numbers:
        return self._score(self._specs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _by_row(spec: TensorSpec, scores: Numbers, keep: int) -> Positions:
    """Return the flat positions of each row's largest scores; a vector is one row."""
    rows = spec.shape[0] if len(spec.shape) > 1 else 1
    if not spec.numel:
        return np.empty(0, dtype=np.int64)
    return largest_of_rows(scores, rows, kept_count(spec.numel // rows, keep))


def largest_of_rows(scores: Numbers, rows: int, count: int) -> Positions:
    """Return the flat positions of the ``count`` largest scores of each row, of equals the first.

    Args:
        scores: Flattened, at least one; 0 or more; 0 never survives.
        rows: How many rows of equal length they are.
        count: At most the length of a row.
    """
    # As integers, magnitudes keep their order and NaN comes out on top, so that it is not lost.
    table = as_bits(np.ascontiguousarray(scores)).reshape(rows, -1)
    width = table.shape[1]
    step = max(1, _AT_ONCE // width)
    found = []
    for first in range(0, rows if count else 0, step):
        part = table[first : first + step]
        edge = np.partition(part, width - count, axis=1)[:, width - count, None]
        above, equal = part > edge, part == edge
        room = count - np.count_nonzero(above, axis=1, keepdims=True)
        chosen = (above | (equal & (np.cumsum(equal, axis=1) <= room))) & (part > 0)
        found.append(np.flatnonzero(chosen) + first * width)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
