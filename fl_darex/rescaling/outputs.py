"""One q per layer by least squares on what its deltas do to real activations, in closed form.

Both need one pass over a few batches and neither a grid nor an eta. ``mse_q`` is the best over all
masks that could be drawn; ``least_squares_q`` the best for the mask that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fl_darex.activations import Batch, each_input, linear_weights
from fl_darex.delta import Delta, TensorSpec, as_delta
from fl_darex.rescaling.eq5 import mse_optimal_q
from fl_darex.rescaling.fixed import keep_rate
from fl_darex.rescaling.layers import PerTensor, bias_of, linear_layers, spread
from fl_darex.survivors import Survivors


def mse_q(
    model: torch.nn.Module, delta: Delta | Mapping[str, Any], batches: Iterable[Batch], p: float
) -> PerTensor:
    """Return q for each pruned tensor that minimises the layer's expected squared output change.

    ``q = (1-p) + p * sum S2 / sum S1^2`` with ``c_ij = delta_W_ij x_j`` and both sums over outputs
    and real tokens x (a mean of x would hide most of S1). A bias counts as a column with x = 1.
    Other tensors take the mean of the layers'.

    Args:
        model: The fine-tuned model: its layers' inputs are what x is.
        delta: What fine-tuning changed, by the model's names.
        batches: Inputs, such that ``model(**batch)`` runs.
        p: Fraction dropped, in [0, 1).

    Raises:
        ValueError: If p is out of range, there is no batch, or no pruned linear layer is reached.
    """
    keep = keep_rate(p)
    change, weights = as_delta(delta), linear_weights(model)
    sums = {
        spec.name: _Squares(_whole(change, spec, weights[spec.name]))
        for spec in linear_layers(change.layout, weights)
    }
    _run(model, sums, batches)
    found = {
        name: mse_optimal_q(one.square, one.noise, p=p) for name, one in sums.items() if one.noise
    }
    return spread(change.layout, found, keep)


def least_squares_q(
    model: torch.nn.Module,
    delta: Delta | Mapping[str, Any],
    survivors: Survivors,
    batches: Iterable[Batch],
    p: float,
) -> PerTensor:
    """Return q for each pruned tensor that brings the layer's output nearest to the fine-tuned one.

    ``1/q = <Y_F - Y_P, M> / <M, M>``: the outputs' change by the whole delta, and M that by the
    unscaled survivors, over real tokens. q is clipped to [1-p, 1]. A layer without survivors and
    all other tensors take the mean of the layers'.

    Args:
        model: The fine-tuned model: its layers' inputs are what both changes are computed from.
        delta: What fine-tuning changed, by the model's names.
        survivors: What is left of it.
        batches: Inputs, such that ``model(**batch)`` runs.
        p: Fraction dropped, in [0, 1).

    Raises:
        ValueError: If p is out of range, there is no batch, or no pruned linear layer is reached.
    """
    keep = keep_rate(p)
    change, weights = as_delta(delta), linear_weights(model)
    sums = {}
    for spec in linear_layers(survivors.layout, weights):
        like = weights[spec.name]
        sums[spec.name] = _Products(_whole(change, spec, like), _part(survivors, spec, like))
    _run(model, sums, batches)
    found = {}
    for name, one in sums.items():
        if one.square:  # <Y, M> <= 0: the survivors point away, and the least of them is best
            found[name] = max(keep, min(1.0, one.square / one.cross)) if one.cross > 0 else 1.0
    return spread(survivors.layout, found, keep)


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer's change: ``x -> x @ matrix.T + bias``."""

    matrix: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the change adds to the output of each row."""
        return torch.nn.functional.linear(rows, self.matrix, self.bias)


class _Squares:
    """Sums of S1 squared and of S2 over outputs and tokens."""

    def __init__(self, whole: Linear) -> None:
        self.whole = whole
        self.columns = whole.matrix.square().sum(0, dtype=torch.float64)
        self.extra = 0.0 if whole.bias is None else _dot(whole.bias, whole.bias)
        self.square = self.noise = 0.0

    def add(self, rows: torch.Tensor) -> None:
        """Add tokens, shape ``(tokens, inputs)``."""
        rows = rows.float()
        change = self.whole(rows)
        self.square += _dot(change, change)
        self.noise += float(rows.double().square().sum(0) @ self.columns)
        self.noise += rows.shape[0] * self.extra


class _Products:
    """Sums of <Y, M> and <M, M>, with Y the whole delta's change and M the survivors'."""

    def __init__(self, whole: Linear, part: Linear) -> None:
        self.whole, self.part = whole, part
        self.cross = self.square = 0.0

    def add(self, rows: torch.Tensor) -> None:
        """Add tokens, shape ``(tokens, inputs)``."""
        rows = rows.float()
        part = self.part(rows)
        self.cross += _dot(self.whole(rows), part)
        self.square += _dot(part, part)


def _run(
    model: torch.nn.Module,
    sums: Mapping[str, _Squares] | Mapping[str, _Products],
    batches: Iterable[Batch],
) -> None:
    if not sums:
        raise ValueError("no pruned tensor is the weight of a torch.nn.Linear of this model")

    def take(name: str, rows: torch.Tensor) -> None:
        if name in sums:
            sums[name].add(rows)

    each_input(model, batches, take)


def _whole(delta: Delta, spec: TensorSpec, like: torch.Tensor) -> Linear:
    bias = bias_of(spec.name)
    pruned = {other.name for other in delta.layout.pruned}
    return Linear(
        torch.from_numpy(delta.whole(spec.name)).reshape(spec.shape).to(like.device),
        torch.from_numpy(delta.whole(bias)).to(like.device) if bias in pruned else None,
    )


def _part(survivors: Survivors, spec: TensorSpec, like: torch.Tensor) -> Linear:
    bias, sizes = bias_of(spec.name), {s.name: s.numel for s in survivors.layout.pruned}

    def scattered(name: str) -> torch.Tensor:
        flat = torch.zeros(sizes[name])
        flat[torch.tensor(survivors.positions[name])] = torch.tensor(survivors.values[name])
        return flat.to(like.device)

    return Linear(
        scattered(spec.name).reshape(spec.shape), scattered(bias) if bias in sizes else None
    )


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))
