"""From positions to survivors: the numbers of a delta where a mask keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_darex.delta import Delta
from fl_darex.positions import Mask, by_tensor
from fl_darex.survivors import Q, Survivors


def gather(delta: Delta, mask: Mask, q: Q, where: Mapping[str, Any] | None = None) -> Survivors:
    """Return the survivors of a delta.

    Args:
        delta: What changed.
        mask: Where the survivors are.
        q: What they are divided by.
        where: The mask's positions by tensor, NumPy arrays or torch tensors, if they are at hand;
            None: they are drawn tensor by tensor and forgotten.
    """
    layout = delta.layout
    drawn = by_tensor(layout, mask) if where is None else where.items()
    taken = {name: delta.take(name, positions) for name, positions in drawn}
    parts = [taken[spec.name] for spec in layout.pruned]
    return Survivors(
        layout=layout,
        mask=mask,
        numbers=np.concatenate(parts) if parts else np.empty(0, dtype=np.float32),
        counts=tuple(part.size for part in parts),
        dense={spec.name: delta.whole(spec.name) for spec in layout.dense},
        raw={spec.name: delta.raw(spec.name) for spec in layout.raw},
        q=q,
    )
