"""What goes into each linear layer of a model: the x of ``delta_W x``.

WANDA weighs a delta by the norm of its input, "DARE the Extreme" (Sec. 3, Eq. 5) reasons about
``c_ij = delta_W_ij x_j``; both need a pass over a few batches, and nothing but sums per input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.shown import described

Vector = NDArray[np.float64]
Batch = Mapping[str, torch.Tensor]
Mask = torch.Tensor | None


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Moments of what one linear layer was given.

    Attributes:
        mean: Signed mean of each input over all tokens of all examples, shape ``(inputs,)``.
        square: Mean of its square, shape ``(inputs,)``.
        absolute: Mean of its absolute value, shape ``(inputs,)``.
        count: Tokens (rows) that were seen; padding is not counted.
    """

    __repr__ = described

    mean: Vector
    square: Vector
    absolute: Vector
    count: int

    @property
    def norm(self) -> Vector:
        """The norm ``||x_j||_2`` of each input over all tokens, shape ``(inputs,)``."""
        return np.sqrt(self.count * self.square)


def layer_inputs(model: torch.nn.Module, batches: Iterable[Batch]) -> dict[str, LayerInputs]:
    """Return the moments of every linear layer's inputs, by the name of its weight.

    The model runs in evaluation mode without gradients; its mode is put back and no hook stays.
    Tokens whose ``attention_mask`` is 0 are left out wherever an input has the mask's shape. A
    layer that no batch reaches is left out. A weight that is tied has the first of its names.

    Args:
        model: Any model whose linear layers are `torch.nn.Linear`.
        batches: Inputs, such that ``model(**batch)`` runs; at least one.

    Raises:
        ValueError: If there is no batch.
    """
    sums: dict[str, _Sums] = {}
    each_input(model, batches, lambda name, rows: sums.setdefault(name, _Sums()).add(rows))
    return {name: total.result() for name, total in sums.items()}


def each_input(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    take: Callable[[str, torch.Tensor], None],
) -> None:
    """Run a model and hand over what goes into each linear layer, as `layer_inputs` does.

    ``take`` is given a weight's name and the rows of its input, shape ``(tokens, inputs)``, without
    those that are padding.
    """

    def attach(mask: Mask) -> list[torch.utils.hooks.RemovableHandle]:
        def hook(name: str, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            take(name, rows_of(inputs[0], mask))

        layers = linear_layers(model)
        return [layer.register_forward_pre_hook(partial(hook, name)) for name, layer in layers]

    observe(model, batches, attach)


def observe(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    attach: Callable[[Mask], list[torch.utils.hooks.RemovableHandle]],
) -> None:
    """Run a model on batches, in evaluation mode without gradients, with hooks on it.

    Its mode is put back and no hook stays, whatever happens.

    Args:
        model: Any model.
        batches: Inputs, such that ``model(**batch)`` runs; at least one.
        attach: Sets the hooks for one batch, given its ``attention_mask``, and returns them.

    Raises:
        ValueError: If there is no batch.
    """
    seen = 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            seen += 1
            handles = attach(batch.get("attention_mask"))
            try:
                model(**batch)
            finally:
                for handle in handles:
                    handle.remove()
    if not seen:
        raise ValueError("no batches were given; statistics of inputs need at least one")


def rows_of(values: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Return values as rows, shape ``(tokens, dimensions)``, without the tokens of padding.

    Args:
        values: Shape ``(..., dimensions)``.
        mask: 0 where a token is padding; None, or another shape than ``values`` has before its
            last axis, keeps every row.
    """
    rows = values.detach().reshape(-1, values.shape[-1])
    if mask is not None and values.shape[:-1] == mask.shape:
        rows = rows[mask.reshape(-1).bool().to(rows.device)]
    return rows


@contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and each module back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before


def evaluating(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Put a model into evaluation mode and back."""
    return in_mode(model, False)


class _Sums:
    """Running sums of one layer's inputs, their squares and absolute values, in float64."""

    def __init__(self) -> None:
        self.sums: list[Any] = [0.0, 0.0, 0.0]
        self.count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows of inputs."""
        rows = rows.double()
        added = rows.sum(0), rows.square().sum(0), rows.abs().sum(0)
        self.sums = [old + new for old, new in zip(self.sums, added, strict=True)]
        self.count += rows.shape[0]

    def result(self) -> LayerInputs:
        """Return the moments."""
        count = max(1, self.count)
        mean, square, absolute = ((total / count).cpu().numpy() for total in self.sums)
        return LayerInputs(mean, square, absolute, self.count)


def linear_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    """Return every linear layer with the name of its weight; a tied weight has its first name."""
    state = list(model.state_dict(keep_vars=True).items())
    names = {id(tensor): name for name, tensor in reversed(state)}
    return [
        (names[id(module.weight)], module)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]


def linear_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a model's linear layers, a tied one once, by its first name."""
    return {name: module.weight for name, module in linear_layers(model)}
