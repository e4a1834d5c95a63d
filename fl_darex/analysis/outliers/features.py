"""Outlier features: dimensions that are large in many layers and for many tokens.

Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS
2022, https://arxiv.org/abs/2208.07339, Sec. 4. "DARE the Extreme" (App. D.1, Fig. 8) sets them
against what the deltas add, delta_W_ij x_j: large inputs, small changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import Batch, LayerInputs, Mask, observe, rows_of
from fl_darex.analysis.outliers.residual import Reader, layer_norms, residual_readers

MAGNITUDE, LAYERS, TOKENS = 6.0, 0.25, 0.06
"""LLM.int8(), Sec. 4: at least 6 in at least 25 % of the layers and 6 % of the tokens."""


@dataclass(frozen=True, eq=False)
class OutlierFeatures:
    """How often each dimension of the residual stream is large where linear layers read it.

    Attributes:
        layers: Share of the transformer layers in which at least one token is large, in [0, 1],
            shape ``(width,)``.
        tokens: Share of the tokens of all layers that are large, same shape.
        peak: Largest magnitude, same shape.
    """

    layers: NDArray[np.float64]
    tokens: NDArray[np.float64]
    peak: NDArray[np.float64]

    def dimensions(self, layers: float = LAYERS, tokens: float = TOKENS) -> list[int]:
        """Return the outlier features, those of most tokens first.

        Args:
            layers: Share of the layers that a feature must be large in.
            tokens: Share of the tokens that it must be large for.
        """
        (found,) = np.nonzero((self.layers >= layers) & (self.tokens >= tokens))
        order = np.argsort(-self.tokens[found], kind="stable")
        return [int(dimension) for dimension in found[order]]


def outlier_features(
    model: torch.nn.Module, batches: Iterable[Batch], magnitude: float = MAGNITUDE
) -> OutlierFeatures:
    """Count where the inputs of linear layers that read the residual stream are large.

    The stream is looked at as these layers get it, after a layer norm. A transformer layer reads
    it more than once (attention, MLP): each counts as tokens of that layer. Heads and poolers do
    not count. Padding is left out; no hook stays.

    Args:
        model: A transformer.
        batches: Inputs, such that ``model(**batch)`` runs; at least one.
        magnitude: What counts as large.

    Raises:
        ValueError: If there is no batch, no layer reads the stream, or ``magnitude`` is not
            above 0.
    """
    if not magnitude > 0:
        raise ValueError(f"magnitude must be above 0, got {magnitude}")
    rest = iter(batches)
    first = list(next(([batch] for batch in rest), []))
    readers = residual_readers(model, _one_example(first[0])) if first else ()
    blocks = _blocks(readers)
    counts: dict[str, _Counts] = {}
    observe(model, chain(first, rest), lambda mask: _watch(model, blocks, counts, magnitude, mask))
    if not counts:
        raise ValueError(f"no numbered layer of {type(model).__name__} reads the residual stream")
    return _features(blocks, counts)


@dataclass(frozen=True, eq=False)
class Contributions:
    """What an input dimension j adds to a layer's output by its delta: ``delta_W_ij x_j``.

    Over all outputs i and all tokens; shape ``(inputs,)``.

    Attributes:
        mean: Signed mean.
        variance: Variance.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def contributions(
    deltas: Mapping[str, Any], inputs: Mapping[str, LayerInputs]
) -> dict[str, Contributions]:
    """Return mean and variance of ``delta_W_ij x_j`` for each input of each layer (Fig. 8 b, c).

    ``E[delta_W_ij x_j]`` over i and tokens is a product of two means, and so is its square's:
    the moments of ``layer_inputs`` are enough.

    Args:
        deltas: Deltas of weights by name, shape (outputs, inputs), torch or NumPy.
        inputs: What ``fl_darex.activations.layer_inputs`` found; names that are not in both are
            left out.
    """
    found = {}
    for name in (name for name in inputs if name in deltas):
        delta, moments = torch.as_tensor(deltas[name]).detach().cpu().double().numpy(), inputs[name]
        mean = delta.mean(0) * moments.mean
        square = np.square(delta).mean(0) * moments.square
        found[name] = Contributions(mean, np.maximum(square - mean**2, 0.0))
    return found


def _one_example(batch: Batch) -> Batch:
    """Return the first example of a batch: tracing keeps every norm's output."""
    examples = {len(value) if value.dim() else 0 for value in batch.values()}
    return {name: value[:1] for name, value in batch.items()} if len(examples) == 1 else batch


class _Counts:
    """Large values per dimension at one place where the stream is read."""

    def __init__(self, width: int) -> None:
        self.large = np.zeros(width, np.int64)
        self.peak = np.zeros(width)
        self.tokens = 0

    def add(self, states: torch.Tensor, mask: Mask, magnitude: float) -> None:
        """Count the tokens of a batch."""
        size = rows_of(states, mask).abs()
        if len(size):
            self.large += (size >= magnitude).sum(0).cpu().numpy()
            self.peak = np.maximum(self.peak, size.amax(0).cpu().double().numpy())
        self.tokens += len(size)


def _blocks(readers: Iterable[Reader]) -> dict[str, set[str]]:
    """Return the transformer layers that read each norm's output."""
    blocks: dict[str, set[str]] = {}
    for reader in readers:
        if reader.block:
            blocks.setdefault(reader.norm, set()).add(reader.block)
    return blocks


def _watch(
    model: torch.nn.Module,
    blocks: Mapping[str, set[str]],
    counts: dict[str, _Counts],
    magnitude: float,
    mask: Mask,
) -> list[torch.utils.hooks.RemovableHandle]:
    def hook(_: Any, __: Any, output: torch.Tensor, *, name: str) -> None:
        counts.setdefault(name, _Counts(output.shape[-1])).add(output, mask, magnitude)

    return [
        norm.register_forward_hook(functools.partial(hook, name=name))
        for name, norm in layer_norms(model).items()
        if name in blocks
    ]


def _features(blocks: Mapping[str, set[str]], counts: Mapping[str, _Counts]) -> OutlierFeatures:
    by_block: dict[str, NDArray[np.bool_]] = {}
    for name, count in counts.items():
        for block in blocks[name]:
            by_block[block] = by_block.get(block, np.False_) | (count.large > 0)
    tokens = sum(count.tokens for count in counts.values())
    large = np.sum([count.large for count in counts.values()], axis=0)
    return OutlierFeatures(
        layers=np.mean(list(by_block.values()), axis=0),
        tokens=large / max(1, tokens),
        peak=np.max([count.peak for count in counts.values()], axis=0),
    )
