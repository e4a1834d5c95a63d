"""Tensors as files hold them: compared, hashed, and changed, in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import wide
from fl_darex.files.formats import StoredTensor, rounded_to_bfloat16
from fl_darex.positions import Positions
from fl_darex.survivors import Numbers
from fl_darex.wire.versions import content_version, digest_of_tensor

AT_ONCE = 1 << 20  # entries
_HASHERS = 4
_DIGITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


def in_type(numbers: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return numbers rounded to a type as a file holds it: bfloat16 as its bits."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return numbers.astype(dtype, copy=False)
    return rounded_to_bfloat16(numbers.astype(np.float32, copy=False)).reshape(numbers.shape)


def wider(one: str, other: str) -> bool:
    """Return whether one floating-point type has more digits than another one."""
    return _DIGITS.get(one, 0) > _DIGITS.get(other, 0)


def pieces(numel: int) -> Iterator[tuple[int, int]]:
    """Yield where each piece of a flattened tensor begins and ends."""
    for start in range(0, numel, AT_ONCE):
        yield start, min(start + AT_ONCE, numel)


def equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether a tensor has the bits of another one that is rounded to its type.

    It ends at the first piece that differs. What is worked out in float32, in place of a tensor
    of fewer bits, is not rounded first: steps that such a type does not see are changes.
    """
    ours = one.stored().reshape(-1)
    computed = ours.dtype != in_type(np.empty(0), one.dtype).dtype
    same = one.dtype == other.dtype and not computed
    theirs = other.stored().reshape(-1) if same else None
    kind = f"u{ours.dtype.itemsize}"  # NaN equals itself, and -0.0 is not 0.0
    for start, end in pieces(one.numel):
        if theirs is not None:
            part = theirs[start:end]
        else:
            numbers = other.span(start, end)
            part = numbers.astype(ours.dtype) if computed else in_type(numbers, one.dtype)
        if not np.array_equal(ours[start:end].view(kind), part.view(kind)):
            return False
    return True


def distance(one: StoredTensor, other: StoredTensor) -> float:
    """Return the sum of absolute differences."""
    parts = (
        np.abs(one.span(*piece).astype(np.float64) - other.span(*piece)).sum()
        for piece in pieces(one.numel)
    )
    return float(sum(parts))


def version_of(tensors: Mapping[str, StoredTensor], told: Callable[[int], None]) -> bytes:
    """Return the version of a model: a hash of its tensors' names, types, shapes and bits.

    Tensors are hashed side by side, as they lie in the file.

    Args:
        tensors: By name.
        told: Is told the bytes of each that is done.
    """
    digests: dict[str, bytes] = {}
    with ThreadPoolExecutor(min(_HASHERS, os.cpu_count() or 1)) as hashers:
        for name, digest, size in hashers.map(_hashed, tensors.items()):
            digests[name] = digest
            told(size)
    return content_version(digests)


def restored(
    base: StoredTensor | None,
    dtype: str,
    shape: tuple[int, ...],
    change: Numbers | None = None,
    positions: Positions | None = None,
) -> NDArray[Any]:
    """Return ``base + change`` as a file holds it: added in float32 or wider, rounded once.

    Args:
        base: What it is a change of; None: zeros.
        dtype: The type that comes out.
        shape: The shape that comes out.
        change: One number for each position, flattened; None: it stays as it is.
        positions: Flat positions that change; None: all.
    """
    if base is not None and base.dtype == dtype:
        result = np.array(base.stored(), order="C").reshape(-1)
    else:
        result = _converted(base, dtype, shape)
    if change is not None:
        for part, values in _changes(base, dtype, change, positions):
            result[part] = values
    return result.reshape(shape)


def _changes(
    base: StoredTensor | None, dtype: str, change: Numbers, positions: Positions | None
) -> Iterator[tuple[slice | Positions, NDArray[Any]]]:
    """Yield places and the new values there, piece by piece."""
    for start, end in pieces(change.size):
        part = slice(start, end) if positions is None else positions[start:end]
        if base is None:
            before: NDArray[Any] = np.zeros(end - start, dtype=np.float32)
        elif isinstance(part, slice):
            before = base.span(start, end)
        else:
            before = base.entries_at(part)
        kind = np.result_type(wide(before.dtype), change.dtype)
        with np.errstate(over="ignore"):
            yield part, in_type(before.astype(kind, copy=False) + change[start:end], dtype)


def _converted(base: StoredTensor | None, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    numel = int(np.prod(shape, dtype=np.int64))
    result = np.zeros(numel, dtype="uint16" if dtype == "bfloat16" else dtype)
    for start, end in pieces(numel) if base is not None else ():
        result[start:end] = in_type(base.span(start, end), dtype)  # type: ignore[union-attr]
    return result


def _hashed(item: tuple[str, StoredTensor]) -> tuple[str, bytes, int]:
    name, tensor = item
    stored = tensor.stored()
    return name, digest_of_tensor(name, tensor.dtype, stored), stored.nbytes
