"""DARE: drop a random part of the delta, rescale what survives.

Yu et al., "Language Models are Super Mario", ICML 2024, https://arxiv.org/abs/2311.03099;
"DARE the Extreme", ICLR 2025, Sec. 2: ``P(delta)_ij = delta_ij * Bernoulli(1-p) / q``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_darex import masks
from fl_darex.delta import Delta, as_delta
from fl_darex.survivors import SeededMask, Survivors, seeded_positions


def dare(
    delta: Delta | Mapping[str, Any],
    p: float,
    *,
    seed: int,
    round_: int = 0,
    slot: int = 0,
) -> Survivors:
    """Drop each entry of the delta with probability ``p``; the rest survives unscaled.

    ``p = 0`` keeps everything and is the identity. The work is
    proportional to the survivors, and p is exact in every dtype, bfloat16 included.

    Args:
        delta: A `Delta`, or differences by tensor name (NumPy or torch, any float dtype).
        p: Fraction dropped, in [0, 1). Higher means fewer bytes.
        seed: The run's seed; the global random generators are never used.
        round_: The federated round; another round, another mask.
        slot: The client's partition; -1 for a mask that all clients share.

    Returns:
        Survivors with q = 1-p, which makes them unbiased; `fl_darex.rescaling` offers other q.

    Raises:
        ValueError: If ``p`` is outside [0, 1).
    """
    return draw(as_delta(delta), SeededMask(seed, round_, slot, masks.keep_threshold(p)))


def draw(delta: Delta, mask: SeededMask) -> Survivors:
    """Gather the entries of ``delta`` that ``mask`` keeps; q is the mask's exact keep rate."""
    positions = seeded_positions(delta.layout, mask)
    return Survivors(
        layout=delta.layout,
        positions=positions,
        values={name: delta.take(name, where) for name, where in positions.items()},
        dense={spec.name: delta.whole(spec.name) for spec in delta.layout.dense},
        raw={spec.name: delta.raw(spec.name) for spec in delta.layout.raw},
        q=mask.kept / masks.ONE,
        mask=mask,
    )
