"""Calling a model with other tensors than its own, which never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.func import functional_call


class Stateless:
    """A model that is called with tensors from outside.

    What a module writes into its buffers (BatchNorm's statistics) goes into copies, which the next
    call sees.

    Args:
        model: Any module. A tensor that is tied to others is replaced everywhere at once.

    Attributes:
        tensors: What the next calls use in place of the model's own, by name.
        buffers: Copies of the model's buffers, by name.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.tensors: Mapping[str, torch.Tensor] = {}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        state = {**self.tensors, **self.buffers}
        output = functional_call(self._model, state, args, kwargs)
        # A module may have put a new tensor into a buffer's place.
        self.buffers = {name: state[name].detach() for name in self.buffers}
        return output
