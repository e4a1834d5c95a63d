"""WANDA on deltas: keep the changes that matter most to their layer's output.

"DARE the Extreme", App. A and C.5: ``S_ij = |delta_ij| * ||x_j||_2``, the top ``(1-p) m n`` of each
matrix, not rescaled; after Sun et al., "A Simple and Effective Pruning Approach for Large Language
Models", ICLR 2024, which chooses in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_darex.delta import Delta, Layout, TensorSpec, as_delta
from fl_darex.masks import keep_threshold
from fl_darex.positions import ListedMask
from fl_darex.pruning.scores import Scope, Score, keep_largest
from fl_darex.survivors import Numbers, Survivors


def wanda(
    delta: Delta | Mapping[str, Any],
    p: float,
    norms: Mapping[str, ArrayLike],
    *,
    scope: Scope = "layer",
    seed: int = 0,
    round_: int = 0,
    slot: int = 0,
) -> Survivors:
    """Keep the changes with the largest ``|delta_ij| * ||x_j||``; see `magnitude` for the rest.

    Changes whose input was 0 in all examples come last, in canonical order. A tensor without norms
    (an embedding, a bias, a normalisation) is pruned by the magnitude of its changes, which the
    paper leaves open.

    Args:
        delta: A `Delta`, or differences by tensor name.
        p: Fraction dropped, in [0, 1).
        norms: For weights (outputs, inputs), the norm of each input, shape ``(inputs,)``, as
            ``fl_darex.activations.layer_inputs(...)[name].norm``. Names that the delta lacks
            are left aside.
        scope: Among which entries the largest are chosen. ``"global"`` needs norms of all
            tensors.
        seed: The run's seed; with round and slot it names the packet.
        round_: The federated round.
        slot: Who prunes: the client's partition.

    Raises:
        ValueError: If ``p`` or ``scope`` is not allowed, or norms do not fit.
    """
    known, mask = as_delta(delta), ListedMask({}, seed, round_, slot)
    return keep_largest(known, keep_threshold(p), scope, weighted(known, norms, scope), mask)


def weighted(delta: Delta, norms: Mapping[str, ArrayLike], scope: str) -> Score:
    """Return how to score a tensor: by the magnitude of its changes times its inputs' norms.

    Args:
        delta: What changed.
        norms: As of `wanda`.
        scope: Among which entries.

    Raises:
        ValueError: If norms do not fit the tensors or the scope.
    """
    scales = _checked(delta.layout, norms)
    if scope == "global" and len(scales) < len(delta.layout.pruned):
        lacking = [spec.name for spec in delta.layout.pruned if spec.name not in scales]
        raise ValueError(
            "scope 'global' compares the scores of all tensors, but norms has none of "
            f"{lacking[:5]}; use 'layer' or 'row'"
        )

    def score(spec: TensorSpec) -> Numbers:
        sizes: Numbers = np.abs(delta.whole(spec.name))
        if spec.name not in scales:
            return sizes
        scores: Numbers = (sizes.reshape(spec.shape) * scales[spec.name]).reshape(-1)
        # A score of 0 never survives, but a change whose input was always 0 is a change.
        scores[(scores == 0) & (sizes > 0)] = np.finfo(scores.dtype).smallest_subnormal
        return scores

    return score


def _checked(layout: Layout, norms: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float32]]:
    found = {}
    for spec in layout.pruned:
        if spec.name not in norms:
            continue
        scale = np.asarray(norms[spec.name], dtype=np.float32)
        if len(spec.shape) < 2 or scale.shape != spec.shape[-1:]:
            raise ValueError(
                f"norms[{spec.name!r}] has shape {scale.shape}; a weight of shape {spec.shape} "
                f"needs {spec.shape[-1:] if len(spec.shape) > 1 else 'none'}"
            )
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise ValueError(f"norms[{spec.name!r}] holds negative, infinite or NaN norms")
        found[spec.name] = scale
    return found
