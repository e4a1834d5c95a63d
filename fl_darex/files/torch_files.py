"""torch's own files, ``.bin``: pickles, of which torch's reader takes tensors and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.files.formats import Bfloat16, StoredTensor, reading


def read_torch(file: Path) -> dict[str, StoredTensor]:
    """Return what a file says of its tensors, which are memory-mapped where torch can do so.

    Tensors that share their memory, as tied ones do, are listed under each of their names.

    Raises:
        ValueError: If it holds anything but tensors by name.
    """
    import torch

    try:
        found = _loaded(file)
    except UnpicklingError:  # torch's own words advise to run what is in it
        raise ValueError(
            "it holds more than tensors, which could run any code; save it as .safetensors"
        ) from None
    if isinstance(found, dict) and isinstance(inner := found.get("state_dict"), dict):
        found = inner
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it holds a {type(found).__name__} and no tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name!r} is a {type(tensor).__name__} and no tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError(f"{name!r} is sparse or quantized; save it as a plain tensor")
    return {name: _described(file, tensor.detach()) for name, tensor in found.items()}


def _loaded(file: Path) -> Any:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # written before torch 1.6: there is nothing that could be mapped
        return torch.load(file, map_location="cpu", weights_only=True)


def _described(file: Path, tensor: Any) -> StoredTensor:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if dtype == "bfloat16":
        return StoredTensor(dtype, shape, Bfloat16(partial(_bits, tensor)))
    return StoredTensor(dtype, shape, reading(file)(partial(_array, tensor)))


def _bits(tensor: Any) -> NDArray[np.uint16]:
    import torch

    bits: NDArray[np.uint16] = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return bits


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array
