"""Where a transformer's residual stream is normalised, and which linear layers read it.

Found by what a model does, not by its modules' names: a linear layer reads the residual stream
if it is given the output of a layer norm, or a view of it. So query, key, value and the first
layers of an MLP do, and what follows attention or an activation function does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fl_darex.activations import Batch, evaluating, linear_layers

_NORM = re.compile(r"(layer|rms)_?norm", re.IGNORECASE)
_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Reader:
    """A linear layer that reads the residual stream.

    Attributes:
        weight: The name of its weight, shape (outputs, width of the stream).
        block: The transformer layer that it lies in, such as ``model.layers.3``; empty outside,
            as for a pooler, a classifier or ``lm_head``.
        norm: The layer norm whose output it reads.
    """

    weight: str
    block: str
    norm: str


def layer_norms(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the layer norms and RMS norms of a model by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm)
        or _NORM.search(type(module).__name__)
    }


def residual_readers(model: torch.nn.Module, batch: Batch) -> tuple[Reader, ...]:
    """Return the linear layers that read the residual stream, in the order they run.

    Args:
        model: A transformer whose linear layers are `torch.nn.Linear`.
        batch: Inputs, such that ``model(**batch)`` runs; one example is enough. What the model
            does not run on them is not found.

    Raises:
        ValueError: If no linear layer reads the output of a layer norm.
    """
    found: dict[str, Reader] = {}
    with evaluating(model), torch.no_grad(), _tracing(model, found):
        model(**batch)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear that reads the output of a layer "
            "norm; this analysis is for transformers"
        )
    return tuple(found.values())


@contextmanager
def _tracing(model: torch.nn.Module, found: dict[str, Reader]) -> Iterator[None]:
    # Outputs are kept until the end, so that no later tensor gets the memory of an earlier one.
    outputs: dict[int, tuple[str, torch.Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            outputs[output.untyped_storage().data_ptr()] = name, output

        return hook

    def look_up(weight: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            source = outputs.get(inputs[0].untyped_storage().data_ptr())
            if source is not None and weight not in found:
                block = _BLOCK.match(weight)
                found[weight] = Reader(weight, block[1] if block else "", source[0])

        return hook

    handles = [m.register_forward_hook(remember(name)) for name, m in layer_norms(model).items()]
    handles += [m.register_forward_pre_hook(look_up(name)) for name, m in linear_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
