"""A model's tensors as they are exchanged between server and clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def exchanged(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that are exchanged, by their names in the model's state.

    All parameters that are trained and all saved buffers. A tensor that is tied to another one
    goes once, under its first name; a frozen parameter never goes, both sides have it.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        if frozen or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        found[name] = tensor
    return found


def to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Return copies as NumPy arrays on the CPU."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


@torch.no_grad()
def write(arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy arrays into tensors in place.

    Raises:
        ValueError: If names or shapes differ.
    """
    if odd := set(arrays).symmetric_difference(tensors):
        raise ValueError(f"the arrays are not this model's: {sorted(odd)[:5]} differ")
    for name, tensor in tensors.items():
        source = torch.from_numpy(np.require(arrays[name], requirements="W"))
        if source.shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {tuple(source.shape)}, not {tuple(tensor.shape)}")
        tensor.copy_(source)
