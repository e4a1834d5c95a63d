"""One q per layer by least squares on what its deltas do to real activations, in closed form.

Both need one pass over a few batches and neither a grid nor an eta. ``mse_q`` is the best over all
masks that could be drawn; ``least_squares_q`` the best for the mask that was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn.functional import linear

from fl_darex.activations import Batch, each_input, linear_weights
from fl_darex.delta import Delta, Layout, TensorSpec, as_delta
from fl_darex.rescaling.eq5 import mse_optimal_q
from fl_darex.rescaling.fixed import keep_rate
from fl_darex.rescaling.layers import PerTensor, bias_of, linear_layers, spread
from fl_darex.survivors import Survivors

Change = tuple[torch.Tensor, torch.Tensor | None]
"""What is added to a linear layer's matrix and to its bias; None: the bias is not pruned."""

Entries = Callable[[TensorSpec], torch.Tensor]
"""Gives the flat entries of a pruned tensor."""


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
    whole, weights = as_delta(delta), linear_weights(model)
    changes = {
        spec.name: _change(_entries(whole), spec, whole.layout, weights)
        for spec in linear_layers(whole.layout, weights)
    }
    columns = {k: matrix.square().sum(0, dtype=torch.float64) for k, (matrix, _) in changes.items()}
    extra = {k: 0.0 if bias is None else _dot(bias, bias) for k, (_, bias) in changes.items()}
    square, noise = dict.fromkeys(changes, 0.0), dict.fromkeys(changes, 0.0)

    def add(name: str, rows: torch.Tensor) -> None:
        effect = linear(rows, *changes[name])
        square[name] += _dot(effect, effect)
        noise[name] += float(rows.double().square().sum(0) @ columns[name])
        noise[name] += rows.shape[0] * extra[name]

    _each_row(model, batches, changes, add)
    found = {k: mse_optimal_q(square[k], noise[k], p=p) for k in changes if noise[k]}
    return spread(whole.layout, found, keep)


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
    whole, weights, layout = as_delta(delta), linear_weights(model), survivors.layout
    changes, parts = {}, {}
    for spec in linear_layers(layout, weights):
        changes[spec.name] = _change(_entries(whole), spec, whole.layout, weights)
        parts[spec.name] = _change(_scattered(survivors), spec, layout, weights)
    cross, square = dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0.0)

    def add(name: str, rows: torch.Tensor) -> None:
        part = linear(rows, *parts[name])
        cross[name] += _dot(linear(rows, *changes[name]), part)
        square[name] += _dot(part, part)

    _each_row(model, batches, parts, add)
    found = {  # <Y, M> <= 0: the survivors point away, and the least of them is best
        k: max(keep, min(1.0, square[k] / cross[k])) if cross[k] > 0 else 1.0
        for k in parts
        if square[k]
    }
    return spread(layout, found, keep)


def _entries(delta: Delta) -> Entries:
    return lambda spec: torch.from_numpy(delta.whole(spec.name)).float()


def _scattered(survivors: Survivors) -> Entries:
    def entries(spec: TensorSpec) -> torch.Tensor:
        flat = torch.zeros(spec.numel)
        values = torch.tensor(survivors.values[spec.name], dtype=torch.float32)
        flat[torch.tensor(survivors.positions[spec.name])] = values
        return flat

    return entries


def _change(
    entries: Entries, spec: TensorSpec, layout: Layout, weights: Mapping[str, torch.Tensor]
) -> Change:
    device, bias = weights[spec.name].device, bias_of(spec.name)
    column = next(
        (entries(other).to(device) for other in layout.pruned if other.name == bias), None
    )
    return entries(spec).reshape(spec.shape).to(device), column


def _each_row(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, Change],
    add: Callable[[str, torch.Tensor], None],
) -> None:
    """Hand over what goes into each of the layers, in float32, shape ``(tokens, inputs)``."""
    if not layers:
        raise ValueError("no pruned tensor is the weight of a torch.nn.Linear of this model")
    each_input(
        model, batches, lambda name, rows: add(name, rows.float()) if name in layers else None
    )


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))
