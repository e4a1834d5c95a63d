"""Mask first, then train: of each masked tensor only the kept entries have gradient and state.

Xu and Zhang, "Random Masking Finds Winning Tickets for Parameter Efficient Fine-tuning", ICML 2024,
https://arxiv.org/abs/2405.02596: a random small part of the entries is trained, with a learning
rate that is 100 to 1,000 times as large as that of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from fl_darex.errors import ConfigError


class MaskedParameters:
    """Compact parameters that stand for the kept entries of a model's own.

    A context manager. While it lasts, each backward pass gathers the kept entries of a masked
    tensor's gradient as soon as that is complete, adds them to the compact one's gradient, and lets
    the full one go; so an optimizer, clipping, accumulation and a GradScaler that are given
    ``trained`` in place of the model's parameters hold numbers for the survivors alone. `write`
    carries a step into the model; no other entry of it is ever touched.

    Args:
        parameters: What the model trains, by name.
        kept: Sorted flat positions by name, of those that are masked; the others are trained
            whole. None: all are.

    Attributes:
        trained: What an optimizer trains, by name, in the order of ``parameters``: compact
            parameters (shape ``(survivors,)``) and whole ones. A tensor of which nothing is kept
            is not there.

    Raises:
        ConfigError: If the masks leave nothing to train.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], kept: Mapping[str, NDArray[np.int64]] | None
    ) -> None:
        self._parameters = parameters
        self._where = {
            name: torch.from_numpy(np.require(kept[name], requirements="W")).to(p.device)
            for name, p in parameters.items()
            if kept is not None and name in kept
        }
        self.trained: dict[str, Tensor] = {}
        for name, p in parameters.items():
            if name not in self._where:
                self.trained[name] = p
            elif self._where[name].numel():
                self.trained[name] = Parameter(self.kept_of(name, p.detach()))
        if parameters and not self.trained:
            raise ConfigError(
                "train.masked = true: this round's mask keeps none of the model's entries, so "
                "there is nothing to train; set a smaller compress.p, or a larger "
                "compress.dense-below"
            )
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for name in self._where:
            hook = partial(self._gather, name)
            tensor: Any = self._parameters[name]  # torch has no types here
            self._hooks.append(tensor.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def kept_of(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that is trained: a copy of what is kept, or itself."""
        return tensor.take(self._where[name]) if name in self._where else tensor

    def in_place_of(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Return what is trained in place of parameters, in their order; all others as they are."""
        names = {id(p): name for name, p in self._parameters.items() if name in self._where}
        found = (self.trained.get(names[id(p)]) if id(p) in names else p for p in parameters)
        return [p for p in found if p is not None]

    @torch.no_grad()
    def write(self) -> None:
        """Carry the compact parameters' values into the model."""
        for name, where in self._where.items():
            if (compact := self.trained.get(name)) is not None:
                self._parameters[name].put_(where, compact)

    def _gather(self, name: str, parameter: Any) -> None:
        """Move the kept part of a complete gradient to where the optimizer looks for it."""
        compact, grad = self.trained.get(name), parameter.grad
        parameter.grad = None  # the full one is free before the next tensor's is made
        if compact is None:
            return
        part = grad.take(self._where[name])
        compact.grad = part if compact.grad is None else compact.grad.add_(part)
