"""Which tensors of a model server and clients exchange, and how they are read and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from fl_darex.lora import products, target_layers
from fl_darex.training.state import exchanged, to_numpy, write

if TYPE_CHECKING:
    from peft import PeftModel

Arrays = Mapping[str, NDArray[Any]]


class Exchange:
    """All that is trained, and saved buffers, as they are.

    With LoRA these are the adapters (A, B) and fresh modules; base weights never travel.

    Attributes:
        tensors: What is exchanged, by name.
        trained: What is trained, by name.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors = exchanged(model)
        self.trained = {name: t for name, t in self.tensors.items() if t.requires_grad}

    def read(self) -> dict[str, NDArray[Any]]:
        """Return copies of the tensors as they are now."""
        return to_numpy(self.tensors)

    def write(self, arrays: Arrays) -> None:
        """Copy arrays into the tensors.

        Raises:
            ValueError: If names or shapes differ.
        """
        write(arrays, self.tensors)


class ProductExchange(Exchange):
    """The target weights in place of their adapters: ``compress.lora = "product"``.

    What is read is W + scaling * B @ A. What is written becomes W, and the adapters start anew,
    with the A of the run's seed and B = 0: the product is then the change since the last write. So
    the server's model is dense, and its change over several rounds may have any rank.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        layers = target_layers(model)
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        adapters = {id(p) for layer in layers.values() for p in _adapters(layer)}
        self.tensors = {k: t for k, t in self.tensors.items() if id(t) not in adapters} | weights
        self._model = model
        self._start = [(t, t.detach().clone()) for t in self.trained.values() if id(t) in adapters]

    @torch.no_grad()
    def read(self) -> dict[str, NDArray[Any]]:
        """Return copies of the tensors as they are now, the adapters merged."""
        added = products(self._model)
        return to_numpy({k: t + added[k] if k in added else t for k, t in self.tensors.items()})

    @torch.no_grad()
    def write(self, arrays: Arrays) -> None:
        """Copy arrays into the tensors and start the adapters anew.

        Raises:
            ValueError: If names or shapes differ.
        """
        super().write(arrays)
        for tensor, first in self._start:
            tensor.copy_(first)


def _adapters(layer: Any) -> Iterable[torch.nn.Parameter]:
    return (p for part in (layer.lora_A, layer.lora_B) for p in part.parameters())
