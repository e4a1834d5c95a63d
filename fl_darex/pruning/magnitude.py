"""MP: keep the largest changes.

"DARE the Extreme", App. A and C.5: ``S_ij = |delta_ij|``, the top ``(1-p) m n`` of each matrix, not
rescaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_darex.delta import Delta, TensorSpec, as_delta
from fl_darex.masks import keep_threshold
from fl_darex.positions import ListedMask
from fl_darex.pruning.scores import Scope, Score, keep_largest
from fl_darex.survivors import Numbers, Survivors


def magnitude(
    delta: Delta | Mapping[str, Any],
    p: float,
    *,
    scope: Scope = "layer",
    seed: int = 0,
    round_: int = 0,
    slot: int = 0,
) -> Survivors:
    """Keep the ``(1-p)`` largest changes; they survive as they are, with q = 1.

    Exactly k = ``(1-p) * entries``, rounded half up, of each tensor (``scope="layer"``), of each
    output row (``"row"``) or of the whole model (``"global"``) survive; of equal changes the one
    that comes first. Entries that did not change never survive. Nothing is sorted. AdamR in its
    L1 form is what makes large p work here (Table 7).

    Args:
        delta: A `Delta`, or differences by tensor name.
        p: Fraction dropped, in [0, 1); 0 keeps every entry that changed.
        scope: Among which entries the largest are chosen.
        seed: The run's seed; with round and slot it names the packet.
        round_: The federated round.
        slot: Who prunes: the client's partition.

    Raises:
        ValueError: If ``p`` or ``scope`` is not allowed.
    """
    known, mask = as_delta(delta), ListedMask({}, seed, round_, slot)
    return keep_largest(known, keep_threshold(p), scope, magnitudes(known), mask)


def magnitudes(delta: Delta) -> Score:
    """Return how to score a tensor: by the magnitude of its changes."""
    return lambda spec: np.abs(delta.whole(spec.name))


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """The same of one tensor, piece by piece: see `fl_darex.pruning.largest.Pieces`."""

    delta: Delta
    spec: TensorSpec

    @property
    def dtype(self) -> np.dtype[Any]:
        """The changes' type."""
        return self.delta.dtype

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.spec.numel

    def __getitem__(self, piece: slice) -> Numbers:
        """Return the magnitudes from one place to another, of the flattened tensor."""
        found: Numbers = np.abs(self.delta.part(self.spec.name, piece.start, piece.stop))
        return found
