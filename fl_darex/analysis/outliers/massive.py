"""Massive activations: a few values thousands of times larger than the rest.

Sun et al., "Massive Activations in Large Language Models", COLM 2024,
https://arxiv.org/abs/2402.17762. "DARE the Extreme" (App. D.2, Fig. 9) finds them in the input
of the layer norms of a fine-tuned model, and that the norm's scale makes them small again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import Batch, Mask, observe
from fl_darex.analysis.outliers.residual import layer_norms

MAGNITUDE, RATIO = 100.0, 1000.0
"""Sun et al., Sec. 2: larger than 100 and than 1,000 times the median magnitude."""


@dataclass(frozen=True)
class Peak:
    """The largest magnitude that one dimension reached.

    Attributes:
        dimension: Which one.
        value: The activation, with its sign.
        example: Number of the example where that was, over all batches, from 0.
        token: Its position in that example, padding counted, from 0.
        median: Median magnitude of that example's activations.
    """

    dimension: int
    value: float
    example: int
    token: int
    median: float


@dataclass(frozen=True, eq=False)
class Peaks:
    """The peak of every dimension of one hidden state; all arrays have shape ``(width,)``.

    Attributes:
        value: The activation of largest magnitude, with its sign.
        example: Where it was: the example's number over all batches.
        token: The position in that example, padding counted.
        median: The median magnitude of that example, over its tokens and dimensions.
    """

    value: NDArray[np.float64]
    example: NDArray[np.int64]
    token: NDArray[np.int64]
    median: NDArray[np.float64]

    def __getitem__(self, dimension: int) -> Peak:
        """Return one dimension's peak."""
        return Peak(
            dimension,
            float(self.value[dimension]),
            int(self.example[dimension]),
            int(self.token[dimension]),
            float(self.median[dimension]),
        )

    def largest(self, count: int = 5) -> list[Peak]:
        """Return the largest peaks, by magnitude, of at most that many dimensions."""
        order = np.argsort(-np.abs(self.value), kind="stable")[:count]
        return [self[dimension] for dimension in order.tolist()]

    def massive(self, magnitude: float = MAGNITUDE, ratio: float = RATIO) -> list[Peak]:
        """Return the peaks that are massive, largest first.

        Args:
            magnitude: A massive activation is larger than this.
            ratio: And larger than so many times the median magnitude of its example.
        """
        return [
            peak
            for peak in self.largest(len(self.value))
            if abs(peak.value) > max(magnitude, ratio * peak.median)
        ]


@dataclass(frozen=True, eq=False)
class NormPeaks:
    """What one layer norm was given and what it made of it.

    Attributes:
        before: Peaks of its input: in models that normalise before a layer (ViT, Llama, Qwen2)
            the residual stream itself.
        after: Peaks of its output, which the linear layers see.
        scale: Its weight, shape ``(width,)``; ones where it has none.
    """

    before: Peaks
    after: Peaks
    scale: NDArray[np.float64]


def norm_peaks(model: torch.nn.Module, batches: Iterable[Batch]) -> dict[str, NormPeaks]:
    """Return the peaks before and after each layer norm, by the norm's name, in order of use.

    The model runs in evaluation mode without gradients; its mode is put back and no hook stays.
    Tokens whose ``attention_mask`` is 0 are left out. Norms that no batch reaches, and those of
    another width than most (of single attention heads), are left out. Work in memory is
    ``O(width)`` per norm.

    Args:
        model: Any transformer.
        batches: Inputs, such that ``model(**batch)`` runs; at least one.

    Raises:
        ValueError: If there is no batch, or no layer norm.
    """
    norms = layer_norms(model)
    recorder = _Recorder(norms)
    observe(model, batches, recorder.attach)
    found = recorder.found
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer norm; this is for transformers")
    widths = [before.width for before, _ in found.values()]
    common = max(sorted(set(widths)), key=widths.count)
    return {
        name: NormPeaks(before.result(), after.result(), _scale(norms[name], common))
        for name, (before, after) in found.items()
        if before.width == common
    }


def massive_dimensions(peaks: dict[str, NormPeaks], **limits: float) -> dict[int, list[str]]:
    """Return each dimension that is massive before some norm, and the names of these norms.

    Args:
        peaks: What ``norm_peaks`` found.
        **limits: ``magnitude`` and ``ratio`` of ``Peaks.massive``.
    """
    found: dict[int, list[str]] = {}
    for name, norm in peaks.items():
        for peak in norm.before.massive(**limits):
            found.setdefault(peak.dimension, []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


class _Recorder:
    """The peaks so far, before and after each norm."""

    def __init__(self, norms: dict[str, torch.nn.Module]) -> None:
        self.norms = norms
        self.found: dict[str, tuple[_Running, _Running]] = {}
        self.start, self.size = 0, 0

    def attach(self, mask: Mask) -> list[torch.utils.hooks.RemovableHandle]:
        """Set hooks for one batch."""
        # Examples are counted here: a norm that layers share runs several times for a batch.
        self.start, self.size = self.start + self.size, 0
        return [
            norm.register_forward_hook(functools.partial(self._record, name=name, mask=mask))
            for name, norm in self.norms.items()
        ]

    def _record(
        self, _: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, name: str, mask: Mask
    ) -> None:
        self.size, width = len(output), output.shape[-1]
        pair = self.found.setdefault(name, (_Running(width), _Running(width)))
        for running, states in zip(pair, (inputs[0], output), strict=True):
            running.add(states, mask, self.start)


class _Running:
    """The peaks so far of one hidden state."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.size = torch.full((width,), -1.0, dtype=torch.float64)
        self.value, self.median = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        self.example, self.token = (torch.zeros(width, dtype=torch.int64) for _ in range(2))

    def add(self, states: torch.Tensor, mask: Mask, start: int) -> None:
        """Take the tokens of a batch, shape (examples, ..., width), numbered from ``start``."""
        states = states.detach().float().reshape(len(states), -1, self.width)
        fits = mask is not None and mask.shape == states.shape[:2]
        for number, state in enumerate(states):
            kept = torch.ones(len(state)) if not fits or mask is None else mask[number]
            (places,) = kept.to(state.device).nonzero(as_tuple=True)
            if len(places):
                self._add_example(state[places], places, start + number)

    def _add_example(self, rows: torch.Tensor, places: torch.Tensor, example: int) -> None:
        size, row = rows.abs().max(0)
        value, token = rows.gather(0, row[None])[0].cpu().double(), places[row].cpu()
        larger = (size := size.cpu().double()) > self.size
        median = rows.abs().median().cpu().double()
        self.size = torch.where(larger, size, self.size)
        self.value = torch.where(larger, value, self.value)
        self.median = torch.where(larger, median, self.median)
        self.token = torch.where(larger, token, self.token)
        self.example = torch.where(larger, example, self.example)

    def result(self) -> Peaks:
        """Return the peaks."""
        arrays = (self.value, self.example, self.token, self.median)
        return Peaks(*(array.numpy() for array in arrays))


def _scale(norm: torch.nn.Module, width: int) -> NDArray[np.float64]:
    weight = getattr(norm, "weight", None)
    if weight is None:
        return np.ones(width)
    scale: NDArray[np.float64] = weight.detach().cpu().double().numpy()
    return scale
