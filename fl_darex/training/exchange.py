"""Which tensors of a model server and clients exchange, and how they are read and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.lora import products, target_layers

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

    def view(self) -> dict[str, NDArray[Any]]:
        """Return the tensors as they are now, for whoever copies them at once.

        On a CPU these are the tensors' own numbers, which the next step changes.
        """
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.tensors.items()}

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

    view = read

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
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}


@torch.no_grad()
def write(arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy arrays into tensors in place.

    Raises:
        ValueError: If names or shapes differ.
    """
    if odd := set(arrays).symmetric_difference(tensors):
        raise ValueError(f"the arrays are not this model's: {sorted(odd)[:5]} differ")
    for name, tensor in tensors.items():
        source = arrays[name]
        if source.shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {source.shape}, not {tuple(tensor.shape)}")
        if tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16:
            np.copyto(tensor.detach().numpy(), source, casting="unsafe")  # torch copies them first
        else:
            tensor.copy_(torch.from_numpy(np.require(source, requirements="W")))
