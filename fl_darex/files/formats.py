"""The formats of tensor files: what a file says of its tensors, and how they are written.

``.npz`` is a zip archive of ``.npy`` files, as `numpy.savez` writes it; ``.safetensors`` is the
length of a header in eight bytes, the header in JSON, and the tensors without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import ConfigError, DeltaError
from fl_darex.wire.codings.floats import from_bfloat16, to_bfloat16

_NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
_CODES = {name: code for code, name in _NAMES.items()}
TYPES = tuple(_CODES)
"""The types of tensors that can be read and written, as NumPy spells them, and bfloat16."""

_NOTES = "__metadata__"


@dataclass(frozen=True)
class Bfloat16:
    """Reads a tensor of bfloat16 as float32, which holds every bfloat16 exactly.

    Attributes:
        bits: Reads it as it is stored, as uint16.
    """

    bits: Callable[[], NDArray[np.uint16]]

    def __call__(self) -> NDArray[np.float32]:
        """Return its numbers."""
        numbers: NDArray[np.float32] = from_bfloat16(self.bits())
        return numbers


@dataclass(frozen=True)
class StoredTensor:
    """What is known of a tensor before it is read.

    Attributes:
        dtype: The stored type as NumPy spells it; ``"bfloat16"``, which NumPy lacks; or, of types
            that cannot be read here, whatever the file says.
        shape: Its shape; ``()`` is a scalar.
        load: Reads it. bfloat16 comes as float32, which holds every bfloat16 exactly.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes as it is stored, where its type can be read."""
        return bytes_of(self.dtype, self.shape) if self.dtype in TYPES else self.numel

    def stored(self) -> NDArray[Any]:
        """Return what `load` does, but bfloat16 that lies in a file as its bits, in uint16."""
        return self.load.bits() if isinstance(self.load, Bfloat16) else self.load()

    def entries_at(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return the entries at flat positions inside it; of bfloat16 only these are widened."""
        return self._numbers(self.stored().reshape(-1).take(positions, mode="clip"))

    def span(self, start: int, end: int) -> NDArray[Any]:
        """Return entries ``start`` to ``end - 1`` of the flattened tensor."""
        return self._numbers(self.stored().reshape(-1)[start:end])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return what `load` does: it can stand where an array can."""
        return np.array(self.load(), dtype=dtype, copy=copy)

    def _numbers(self, entries: NDArray[Any]) -> NDArray[Any]:
        return from_bfloat16(entries) if isinstance(self.load, Bfloat16) else entries


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Name the file in the error of whatever is done with its content in the block.

    Raises:
        ConfigError: In place of every other exception: what the parsers of zip, NumPy, JSON and
            safetensors raise for damaged bytes is no closed set.
    """
    try:
        yield
    except ImportError:
        raise ConfigError(f"{str(file)!r} needs safetensors: pip install safetensors") from None
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ConfigError(f"{str(file)!r} cannot be read: {what}") from error


def read_npz(file: Path) -> dict[str, StoredTensor]:
    """Return what an archive says of its tensors."""
    found: dict[str, StoredTensor] = {}
    archive = zipfile.ZipFile(file)  # closed with the last tensor that refers to it
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{name!r} is in it twice")
        found[name] = _archived(file, archive, member)
    return found


def _archived(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> StoredTensor:
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        read_header = getattr(np.lib.format, "read_array_header_{}_{}".format(*version))
        shape, _, dtype = read_header(opened)
        # Memory for as much as the header says is taken before the values are read.
        end = opened.tell() + math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and end != member.file_size:
            raise ValueError(f"{member.filename!r} is not as long as its header says")

    @reading(file)
    def load() -> NDArray[Any]:
        with archive.open(member) as opened:
            array = np.lib.format.read_array(opened, allow_pickle=False)
        if array.dtype.kind not in "biuf":  # void16 is what others' bfloat16 becomes in npz
            raise ValueError(f"{member.filename!r} is of type {array.dtype.name}")
        return array

    return StoredTensor(dtype.name, shape, load)


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Return what a file says of its tensors, which are memory-mapped when they are asked for."""
    from safetensors import safe_open

    # The library reads the header alone and refuses whatever does not add up; where a tensor
    # begins it does not tell, and bfloat16 it does not give to NumPy.
    with safe_open(file, framework="np"):  # type: ignore[no-untyped-call, unused-ignore]
        pass
    data = np.asarray(np.memmap(file, np.uint8, mode="r"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop(_NOTES, None)
    return {name: _mapped(file, name, data[start:], **entry) for name, entry in header.items()}


def _mapped(
    file: Path, name: str, data: NDArray[np.uint8], dtype: str, shape: Any, data_offsets: Any
) -> StoredTensor:
    @reading(file)
    def stored() -> NDArray[Any]:
        if dtype not in _NAMES:
            raise ValueError(f"{name!r} is of type {dtype}; convert it to float32 first")
        part = data[slice(*data_offsets)]
        if dtype == "BOOL" and (part > 1).any():
            raise ValueError(f"{name!r} holds booleans that are neither 0 nor 1")
        array = part.view(_kind(_NAMES[dtype])).reshape(shape)
        # Only files that other programs wrote can hold tensors at odd places; these are copied.
        return np.require(array, None, "A")

    if dtype == "BF16":
        return StoredTensor("bfloat16", tuple(shape), Bfloat16(stored))
    return StoredTensor(_NAMES.get(dtype, dtype), tuple(shape), stored)


def check(suffix: str, name: str, tensor: StoredTensor) -> None:
    """Refuse what a format cannot hold.

    Raises:
        ConfigError: If it lacks the tensor's type or name.
    """
    npz = suffix == ".npz"
    if zipfile.ZipInfo(name).filename != name if npz else name == _NOTES:
        raise ConfigError(f"no tensor in a {suffix} file can be named {name!r}; rename it")
    if tensor.dtype not in _CODES or (npz and tensor.dtype == "bfloat16"):
        raise ConfigError(
            f"{name!r} is of type {tensor.dtype}; what can be written is {', '.join(_CODES)}, "
            "and bfloat16 in .safetensors files alone"
        )


def write_npz(file: IO[Any], tensors: Mapping[str, StoredTensor], notes: Mapping[str, str]) -> None:
    """Write tensors, one after the other, uncompressed; it has no place for notes."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, _as_written(name, tensor), allow_pickle=False)


def write_safetensors(
    file: IO[Any], tensors: Mapping[str, StoredTensor], notes: Mapping[str, str]
) -> None:
    """Write tensors, one after the other, and notes into the header's metadata."""
    sizes = {name: _kind(tensor.dtype).itemsize for name, tensor in tensors.items()}
    # Wide types first, so that every tensor is aligned without gaps.
    order = sorted(tensors, key=lambda name: (-sizes[name], name))
    # Some readers, transformers among them, ask what framework the tensors' layout is that of.
    header: dict[str, Any] = {_NOTES: {"format": "pt", **notes}}
    end = 0
    for name in order:
        code, shape = _CODES[tensors[name].dtype], tensors[name].shape
        start, end = end, end + math.prod(shape) * sizes[name]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(np.ascontiguousarray(_as_written(name, tensors[name])))


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes in a file."""
    return math.prod(shape) * _kind(dtype).itemsize


def _kind(dtype: str) -> np.dtype[Any]:
    """Return the type of what a file holds: little-endian, bfloat16 as its bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def _as_written(name: str, tensor: StoredTensor) -> NDArray[Any]:
    """Read a tensor and return it as a file holds it; numbers are rounded to the stored type.

    Raises:
        DeltaError: If the values have another shape, or are floats where integers are stored.
    """
    array = np.asarray(tensor.stored())
    if array.shape != tensor.shape:
        raise DeltaError(f"{name!r} is of shape {tensor.shape}, its new values {array.shape}")
    if isinstance(tensor.load, Bfloat16):
        return array.astype("<u2", casting="equiv", copy=False)
    half = tensor.dtype == "bfloat16"
    dtype = np.dtype(np.float32) if half else _kind(tensor.dtype)
    try:
        array = array.astype(dtype, casting="same_kind", copy=False)
    except TypeError:
        raise DeltaError(f"{name!r} is of type {tensor.dtype}, its values {array.dtype}") from None
    return rounded_to_bfloat16(array) if half else array


def rounded_to_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return numbers as bfloat16, flattened.

    NaN stays NaN with its sign and the upper part of its payload.
    """
    flat = np.ascontiguousarray(numbers).reshape(-1)
    bits = flat.view(np.uint32)
    # A payload in the lower half alone would be lost, and the NaN be infinity.
    lost = np.isnan(flat) & (bits & np.uint32(0xFFFF) > 0)
    return np.where(lost, bits >> np.uint32(16) | np.uint32(0x40), to_bfloat16(flat)).astype("<u2")
