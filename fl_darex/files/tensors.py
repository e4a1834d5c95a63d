"""Tensors in files that anybody may have made: ``.safetensors`` and ``.npz``, never pickle."""

from __future__ import annotations

import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import ConfigError

Arrays = dict[str, NDArray[Any]]

# As safetensors spells them; bfloat16, which NumPy lacks, is widened and loses nothing.
_TYPES = {
    **{"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"},
    **{"U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?", "BF16": "u2"},
}


def read_tensors(path: str | PathLike[str]) -> Arrays:
    """Return the tensors of a checkpoint by name.

    Args:
        path: A ``.safetensors`` file, an ``.npz`` file, or a folder of ``.safetensors`` files, of
            which all are read, as ``save_pretrained`` leaves them. bfloat16 comes back as float32.

    Raises:
        ConfigError: If there is no such file, or it cannot be read.
    """
    place = Path(path).expanduser()
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not files:
        raise ConfigError(f"no .safetensors file lies in the folder {str(place)!r}")
    found: Arrays = {}
    for file in files:
        found |= _read(file)
    return found


def _read(file: Path) -> Arrays:
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if file.suffix not in readers:
        raise ConfigError(
            f"{str(file)!r} is neither .npz nor .safetensors; save the tensors with numpy.savez or "
            "safetensors (pickles are not opened: they can run any code)"
        )
    try:
        return readers[file.suffix](file)
    except ImportError:
        raise ConfigError(f"{str(file)!r} needs safetensors: pip install safetensors") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ConfigError(f"{str(file)!r} cannot be read: {error}") from None


def _read_npz(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_safetensors(file: Path) -> Arrays:
    from safetensors import deserialize

    tensors = deserialize(file.read_bytes())  # type: ignore[no-untyped-call, unused-ignore]
    return {name: _array(name, found) for name, found in tensors}


def _array(name: str, found: dict[str, Any]) -> NDArray[Any]:
    if found["dtype"] not in _TYPES:
        raise ValueError(f"{name!r} is of type {found['dtype']}")
    dtype = np.dtype(_TYPES[found["dtype"]]).newbyteorder("<")
    flat = np.frombuffer(bytes(found["data"]), dtype)
    if found["dtype"] == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(found["shape"])
