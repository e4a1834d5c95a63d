"""How large the change of a layer's output is: ``|delta_W x|`` against ``|W x|``.

"DARE the Extreme", Sec. 3.1 and Fig. 8: random drop works where what a delta adds is small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import Batch, Mask, linear_layers, observe, rows_of

_PER_DECADE, _LOW, _HIGH = 10, -12, 6
EDGES: NDArray[np.float64] = np.logspace(_LOW, _HIGH, _PER_DECADE * (_HIGH - _LOW) + 1)
"""Edges of the histograms' bins, ten per decade; what lies outside is in the first or last bin."""
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Sizes:
    """The distribution of a magnitude.

    Attributes:
        counts: How many values lie between ``EDGES[i]`` and ``EDGES[i + 1]``.
        mean: Their exact mean.
    """

    counts: NDArray[np.int64]
    mean: float

    def quantile(self, share: float) -> float:
        """Return the magnitude that this share of values does not pass: a bin's upper edge.

        At most 26 % above the exact quantile.

        Raises:
            ValueError: If ``share`` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0, to 1, got {share}")
        below = np.cumsum(self.counts)
        return float(EDGES[1 + np.searchsorted(below, share * below[-1])])


@dataclass(frozen=True, eq=False)
class OutputSizes:
    """The outputs of one linear layer, its bias left out.

    Attributes:
        delta: Of ``|delta_W x|``.
        tuned: Of ``|W x|``, W being the tuned weight.
    """

    delta: Sizes
    tuned: Sizes

    @property
    def ratio(self) -> float:
        """Mean ``|delta_W x|`` over mean ``|W x|``; NaN where the latter is 0."""
        return self.delta.mean / self.tuned.mean if self.tuned.mean else float("nan")


def output_sizes(
    model: torch.nn.Module, base: Mapping[str, Any], batches: Iterable[Batch]
) -> dict[str, OutputSizes]:
    """Return how large ``delta_W x`` and ``W x`` are, for each linear layer that has a base.

    The inputs x are those of the tuned model. Padding is left out; no hook stays. A delta is
    made anew for each batch, so memory grows by one layer's weight, not by the model.

    Args:
        model: The tuned model; its linear layers are `torch.nn.Linear`.
        base: The pre-trained weights by name, torch or NumPy, such as the base's
            ``state_dict()``; layers that it lacks, as a fresh head, are left out.
        batches: Inputs, such that ``model(**batch)`` runs; at least one.

    Raises:
        ValueError: If there is no batch, no layer has a base, or a shape differs.
    """
    layers = [(name, module) for name, module in linear_layers(model) if name in base]
    if not layers:
        raise ValueError("base holds no linear weight of this model; give the base's state_dict()")
    for name, module in layers:
        if tuple(base[name].shape) != tuple(module.weight.shape):
            raise ValueError(
                f"{name} has shape {tuple(module.weight.shape)}, its base "
                f"{tuple(base[name].shape)}; are they two stages of one model?"
            )
    sums: dict[str, tuple[_Sum, _Sum]] = {}
    observe(model, batches, lambda mask: _watch(layers, base, sums, mask))
    return {
        name: OutputSizes(delta.result(), tuned.result()) for name, (delta, tuned) in sums.items()
    }


class _Sum:
    """A histogram in the making."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES) - 1, np.int64)
        self.total, self.seen = 0.0, 0

    def add(self, values: torch.Tensor) -> None:
        """Count the magnitudes of values."""
        for part in torch.split(values.reshape(-1), _CHUNK):
            size = part.abs()
            bins = ((size.log10() - _LOW) * _PER_DECADE).floor()
            places = bins.clamp(0, len(self.counts) - 1).to(torch.int64)
            self.counts += torch.bincount(places, minlength=len(self.counts)).cpu().numpy()
            self.total += float(size.double().sum())
            self.seen += len(part)

    def result(self) -> Sizes:
        """Return the distribution."""
        return Sizes(self.counts, self.total / max(1, self.seen))


def _watch(
    layers: Iterable[tuple[str, torch.nn.Linear]],
    base: Mapping[str, Any],
    sums: dict[str, tuple[_Sum, _Sum]],
    mask: Mask,
) -> list[torch.utils.hooks.RemovableHandle]:
    def hook(module: Any, inputs: tuple[torch.Tensor, ...], *, name: str) -> None:
        rows, weight = rows_of(inputs[0], mask).float(), module.weight.detach().float()
        delta = weight - torch.as_tensor(base[name]).to(weight.device, torch.float32)
        for total, matrix in zip(
            sums.setdefault(name, (_Sum(), _Sum())), (delta, weight), strict=True
        ):
            total.add(rows @ matrix.T)

    return [
        module.register_forward_pre_hook(functools.partial(hook, name=name))
        for name, module in layers
    ]
