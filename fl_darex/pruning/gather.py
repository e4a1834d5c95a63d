"""From positions to survivors: the numbers of a delta where a mask keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_darex.delta import Delta
from fl_darex.positions import Mask
from fl_darex.survivors import Q, Survivors


def gather(delta: Delta, mask: Mask, where: Mapping[str, Any], q: Q) -> Survivors:
    """Return the survivors of a delta.

    Args:
        delta: What changed.
        mask: Where the survivors are, for the packet.
        where: The same, by tensor; NumPy arrays or torch tensors.
        q: What the survivors are divided by.
    """
    layout = delta.layout
    parts = [delta.take(spec.name, where[spec.name]) for spec in layout.pruned]
    return Survivors(
        layout=layout,
        mask=mask,
        numbers=np.concatenate(parts) if parts else np.empty(0, dtype=np.float32),
        counts=tuple(part.size for part in parts),
        dense={spec.name: delta.whole(spec.name) for spec in layout.dense},
        raw={spec.name: delta.raw(spec.name) for spec in layout.raw},
        q=q,
    )
