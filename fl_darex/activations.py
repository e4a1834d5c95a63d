"""What goes into each linear layer of a model: the x of ``delta_W x``.

WANDA weighs a delta by the norm of its input, "DARE the Extreme" (Sec. 3, Eq. 5) reasons about
``c_ij = delta_W_ij x_j``; both need a pass over a few batches, and nothing but sums per input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """Moments of what one linear layer was given.

    Attributes:
        mean: Signed mean of each input over all tokens of all examples, shape ``(inputs,)``.
        square: Mean of its square, shape ``(inputs,)``.
        count: Tokens (rows) that were seen; padding is not counted.
    """

    mean: Vector
    square: Vector
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

    Args:
        model: As in `layer_inputs`.
        batches: As in `layer_inputs`.
        take: Is given a weight's name and the rows of its input, shape ``(tokens, inputs)``,
            without those that are padding.

    Raises:
        ValueError: If there is no batch.
    """
    seen = 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            seen += 1
            with _watching(model, take, batch.get("attention_mask")):
                model(**batch)
    if not seen:
        raise ValueError("no batches were given; statistics of inputs need at least one")


def linear_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a model's linear layers, a tied one once, by its first name."""
    names = {id(tensor): name for name, tensor in reversed(_state(model))}
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    return {names[id(module.weight)]: module.weight for module in linear}


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and back."""
    modes = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Sums:
    """Running sums of one layer's inputs, in float64."""

    def __init__(self) -> None:
        self.first: Any = 0.0
        self.second: Any = 0.0
        self.count = 0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows of inputs."""
        rows = rows.double()
        self.first = self.first + rows.sum(0)
        self.second = self.second + rows.square().sum(0)
        self.count += rows.shape[0]

    def result(self) -> LayerInputs:
        """Return the moments."""
        count = max(1, self.count)
        mean, square = (part / count for part in (self.first, self.second))
        return LayerInputs(mean.cpu().numpy(), square.cpu().numpy(), self.count)


@contextmanager
def _watching(
    model: torch.nn.Module,
    take: Callable[[str, torch.Tensor], None],
    mask: torch.Tensor | None,
) -> Iterator[None]:
    names = {id(weight): name for name, weight in linear_weights(model).items()}
    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            name = names[id(module.weight)]

            def hook(_: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                take(name, _rows(inputs[0].detach(), mask))

            handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    if mask is not None and inputs.shape[:-1] == mask.shape:
        rows = rows[mask.reshape(-1).bool().to(rows.device)]
    return rows


def _state(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(model.state_dict(keep_vars=True).items())
