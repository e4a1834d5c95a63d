"""DARE: drop a random part of the delta, rescale what survives.

Yu et al., "Language Models are Super Mario", ICML 2024, https://arxiv.org/abs/2311.03099;
"DARE the Extreme", ICLR 2025, Sec. 2: ``P(delta)_ij = delta_ij * Bernoulli(1-p) / q``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_darex import masks
from fl_darex.delta import Delta, as_delta
from fl_darex.positions import SeededMask
from fl_darex.pruning.gather import gather
from fl_darex.survivors import Survivors


def dare(
    delta: Delta | Mapping[str, Any],
    p: float,
    *,
    seed: int,
    round_: int = 0,
    slot: int = 0,
    exact: bool = False,
) -> Survivors:
    """Drop each entry of the delta with probability ``p``; the rest survives unscaled.

    ``p = 0`` keeps everything and is the identity. The work is
    proportional to the survivors, and p is exact in every dtype, bfloat16 included.

    Args:
        delta: A `Delta`, or differences by tensor name (NumPy or torch, any float dtype).
        p: Fraction dropped, in [0, 1). Higher means fewer bytes.
        seed: The run's seed; the global random generators are never used.
        round_: The federated round; another round, another mask.
        slot: The client's partition; `fl_darex.masks.SHARED` for one that all share.
        exact: Keep an exact number of each tensor's entries, ``(1-p) * entries`` rounded up or
            down at random, in place of each entry by a draw of its own.

    Returns:
        Survivors with q = 1-p, which makes them unbiased; `fl_darex.rescaling` offers other q.

    Raises:
        ValueError: If ``p`` is outside [0, 1).
    """
    return draw(as_delta(delta), SeededMask(seed, round_, slot, masks.keep_threshold(p), exact))


def draw(delta: Delta, mask: SeededMask) -> Survivors:
    """Gather the entries of ``delta`` that ``mask`` keeps; q is the mask's exact keep rate."""
    return gather(delta, mask, mask.keep / masks.ONE, _positions(delta, mask))


def _positions(delta: Delta, mask: SeededMask) -> dict[str, Any]:
    """Return positions by tensor, drawn where the tensors are."""
    devices = {spec.name: delta.accelerator(spec.name) for spec in delta.layout.pruned}
    if mask.exact or not any(devices.values()):
        return mask.in_layout(delta.layout)
    from fl_darex.masks import on_torch

    return {
        spec.name: on_torch.survivors(
            mask.key(spec.name), spec.numel, mask.keep, devices[spec.name] or "cpu"
        )
        for spec in delta.layout.pruned
    }
