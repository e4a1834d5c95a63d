"""Tensors in files that anybody may have made: ``.safetensors`` and ``.npz``.

Pickles can run any code and are not opened. Only who asks for torch's own files, ``.bin``, has them
read, by torch's reader of tensors alone (``weights_only``).

Types are kept. NumPy has no bfloat16: such a tensor is given as float32, which holds its values
exactly, its description says ``"bfloat16"``, and what is written as bfloat16 again is the same bit
for bit. Types that NumPy has no room for, such as the 8-bit floats, are refused by name.
"""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import ConfigError
from fl_darex.files import formats
from fl_darex.files.atomic import open_atomically
from fl_darex.files.formats import StoredTensor, reading
from fl_darex.files.torch_files import read_torch

_READERS = {".npz": formats.read_npz, ".safetensors": formats.read_safetensors}
_WRITERS = {".npz": formats.write_npz, ".safetensors": formats.write_safetensors}
_INDEX = "model.safetensors.index.json"
_TORCH, _TORCH_FILES, _TORCH_INDEX = ".bin", "pytorch_model*.bin", "pytorch_model.bin.index.json"


class StoredTensors(UserDict[str, Any]):
    """Tensors by name, in the order of the file, each read when it is asked for, every time.

    So two checkpoints are gone through tensor by tensor, and never is one of them whole in memory.
    Do not write to what you are given: it may be read-only, a part of the file itself.

    Attributes:
        data: The `StoredTensor` of each: what is known of it before it is read.
    """

    def __getitem__(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self.data[name].load()
        return found


def open_tensors(path: str | PathLike[str], *, torch_files: bool = False) -> StoredTensors:
    """Return the tensors of a checkpoint by name, of which none is read before it is asked for.

    Those of ``.safetensors`` files are memory-mapped: do not write into such a file while it is in
    use. To replace it, as `write_tensors` does, is safe.

    Args:
        path: A ``.safetensors`` file, an ``.npz`` file, or a folder of ``.safetensors`` files, as
            ``save_pretrained`` leaves them: those that ``model.safetensors.index.json`` names, or
            all where there is no index.
        torch_files: Whether it may be a ``.bin`` file, or a folder of ``pytorch_model*.bin`` files
            without any of the others; torch is loaded for them.

    Raises:
        ConfigError: If there is no such file, it cannot be read, or the files of a folder do not
            fit each other; also later, when a tensor is asked for that is damaged or of a type
            that NumPy lacks.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return StoredTensors(_in_file(place, torch_files))
    if torch_files and not list(place.glob("*.safetensors")) and list(place.glob(_TORCH_FILES)):
        return StoredTensors(_in_folder(place, _TORCH_INDEX, _TORCH_FILES))
    return StoredTensors(_in_folder(place, _INDEX, "*.safetensors"))


def read_tensors(path: str | PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the tensors of a checkpoint in memory, whatever becomes of the file.

    Args:
        path: As for `open_tensors`. bfloat16 comes back as float32.

    Raises:
        ConfigError: If there is no such file, or it cannot be read.
    """
    return {name: np.array(array) for name, array in open_tensors(path).items()}


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Any], notes: Mapping[str, str] | None = None
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: Ends with ``.safetensors`` or ``.npz``; its folder must exist.
        tensors: NumPy arrays or torch tensors by name. `StoredTensors`, from a file or made by the
            caller, are read one at a time and rounded to the type that their description says.
        notes: Texts for the metadata of a ``.safetensors`` file.

    Raises:
        ConfigError: If the path has another suffix, or the format lacks a tensor's type or name.
        DeltaError: If the values of a `StoredTensor` do not fit its description.
        OSError: If the file cannot be written.
    """
    place = Path(path).expanduser()
    write = _WRITERS[_format(place)]
    described = tensors.data if isinstance(tensors, StoredTensors) else _described(tensors)
    for name, tensor in described.items():
        formats.check(place.suffix, name, tensor)
    with open_atomically(place) as file:
        write(file, described, notes or {})


def _described(tensors: Mapping[str, Any]) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            getattr(tensor.dtype, "name", None) or str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            partial(_numpy, tensor),
        )
        for name, tensor in tensors.items()
    }


def _numpy(tensor: Any) -> NDArray[Any]:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # By text: torch itself is not imported here.
        tensor = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(tensor)


def _format(file: Path) -> str:
    if file.suffix not in _READERS:
        raise ConfigError(
            f"{str(file)!r} is neither .npz nor .safetensors; save the tensors with numpy.savez or "
            "safetensors (pickles are not opened: they can run any code)"
        )
    return file.suffix


def _in_file(file: Path, torch_files: bool = False) -> dict[str, StoredTensor]:
    read = read_torch if torch_files and file.suffix == _TORCH else _READERS[_format(file)]
    if file.exists() and not file.is_file():  # to open a pipe is to wait for ever
        raise ConfigError(f"{str(file)!r} is there and is no file")
    with reading(file):
        return read(file)


def _in_folder(folder: Path, index_name: str, pattern: str) -> dict[str, StoredTensor]:
    index, suffix = folder / index_name, Path(pattern).suffix
    places = _places(index, suffix) if index.is_file() else {}
    files = sorted(set(places.values()) or (path.name for path in folder.glob(pattern)))
    if not files:
        raise ConfigError(f"no .safetensors file lies in the folder {str(folder)!r}")
    found: dict[str, StoredTensor] = {}
    held: dict[str, str] = {}
    for file in files:
        if not (folder / file).exists():
            raise ConfigError(f"{str(index)!r} names {file!r}, which is missing; fetch it again")
        for name, tensor in _in_file(folder / file, suffix == _TORCH).items():
            if name in held:
                raise ConfigError(
                    f"{name!r} is in both {held[name]!r} and {file!r} of {str(folder)!r}; give "
                    "one of the files, or remove what does not belong to the model"
                )
            found[name], held[name] = tensor, file
    for name, file in places.items():
        if held.get(name) != file:
            raise ConfigError(
                f"{str(index)!r} puts {name!r} in {file!r}, where it is not; fetch both again"
            )
    return found


def _places(index: Path, suffix: str) -> dict[str, str]:
    """Return the name of the file that each tensor lies in."""
    with reading(index):
        content = json.loads(index.read_text("utf-8"))
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not places:
            raise ValueError("weight_map must say in which file each tensor is")
        for name, file in places.items():
            # Anybody may have written it, and it could point to anything on this machine.
            plain = isinstance(file, str) and Path(file).name == file
            if not plain or not file.endswith(suffix):
                raise ValueError(f"{name!r} is in {file!r}, which is no {suffix} file beside it")
        return places
