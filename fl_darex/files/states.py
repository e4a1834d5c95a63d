"""Plain values as bytes and back: the shape of them is JSON, numbers lie in blocks behind it.

What `fl_darex.saveable.Saveable` says of a run is written so. Nothing that is read back is called,
imported or made by name, as a pickle would be: it is what stands here or it is refused.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGN = 64
"""Blocks begin at multiples of it, so that arrays can be looked at where they lie."""

_PLAIN = (bool, int, float, str, type(None))
_LISTED: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_MAPPED: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
}
_DEFAULTS = {one.__name__: one for one in (int, float, str, bool, list, dict, set, tuple)}


class Packed:
    """A value, taken apart.

    Attributes:
        shape: What JSON can hold: numbers, texts and, for all else, a list that begins with its
            kind and refers to blocks by where they begin.
        blocks: Bytes of arrays and of byte strings, in order, each followed by `padding`.

    Args:
        value: None, truth values, whole and floating-point numbers, texts, bytes, NumPy's arrays
            and scalars, and lists, tuples, sets, mappings and deques of these, each of exactly its
            kind: a class built on one of these may hold more than its items.

    Raises:
        TypeError: If there is anything else in it; the message says where.
    """

    def __init__(self, value: Any) -> None:
        self.blocks: list[memoryview] = []
        self._end = 0
        self.shape = self._of(value, "")

    def _of(self, value: Any, place: str) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is bytes:
            return ["bytes", self._block(memoryview(value)), len(value)]
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, place)
        if kind.__name__ in _LISTED and kind.__module__ == "builtins":
            return [kind.__name__, *self._items(value, place)]
        if kind is deque:
            return ["deque", value.maxlen, *self._items(value, place)]
        if kind in (dict, OrderedDict, Counter):
            return [kind.__name__, *self._pairs(value, place)]
        if kind is defaultdict and value.default_factory in (None, *_DEFAULTS.values()):
            name = getattr(value.default_factory, "__name__", "")
            return ["defaultdict", name, *self._pairs(value, place)]
        raise TypeError(f"{place.lstrip('.') or 'it'} is {_named(value)}, which is no plain value")

    def _items(self, value: Any, place: str) -> Iterator[Any]:
        return (self._of(one, f"{place}.{number}") for number, one in enumerate(value))

    def _pairs(self, value: dict[Any, Any], place: str) -> Iterator[list[Any]]:
        for key, one in value.items():
            inside = f"{place}.{key}"
            yield [self._of(key, inside), self._of(one, inside)]

    def _array(self, value: NDArray[Any] | np.generic, place: str) -> list[Any]:
        dtype = value.dtype
        exact = type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic)
        if not exact or dtype.hasobject or not dtype.itemsize or np.dtype(dtype.str) != dtype:
            raise TypeError(f"{place.lstrip('.') or 'it'} is {_named(value)} of {dtype}")
        array = np.asarray(value)
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        flat = np.ascontiguousarray(array.T if by_columns else array).reshape(-1).view(np.uint8)
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        where = self._block(flat.data)
        return [kind, where, dtype.str, list(array.shape), by_columns]

    def _block(self, data: memoryview) -> int:
        start = self._end
        self.blocks.append(data)
        self._end += len(data) + padding(len(data))
        return start


def padding(size: int) -> int:
    """Return how many bytes come after a block of a size, so that the next one is aligned."""
    return -size % ALIGN


def unpacked(shape: Any, blocks: NDArray[np.uint8]) -> Any:
    """Return the value that `Packed` took apart; arrays may be written to.

    Args:
        shape: `Packed.shape`, as JSON gives it back.
        blocks: `Packed.blocks` in one piece, which arrays then are views of.

    Raises:
        ValueError: If it is none of that; also `TypeError`, `KeyError`, `IndexError` or
            `RecursionError`.
    """
    if not isinstance(shape, list):
        if type(shape) not in _PLAIN:
            raise ValueError(f"{type(shape).__name__} in place of a value")
        return shape
    kind, *rest = shape
    if kind in _LISTED:
        return _LISTED[kind]([unpacked(one, blocks) for one in rest])
    if kind in _MAPPED:
        return _MAPPED[kind](_pairs(rest, blocks))
    if kind == "defaultdict":
        factory = _DEFAULTS[rest[0]] if rest[0] else None
        return defaultdict(factory, _pairs(rest[1:], blocks))
    if kind == "deque":
        return deque([unpacked(one, blocks) for one in rest[1:]], rest[0])
    if kind == "bytes":
        return _block(blocks, *rest).tobytes()
    if kind in ("array", "scalar"):
        where, name, dims, by_columns = rest
        dtype = np.dtype(name)
        flat = _block(blocks, where, math.prod(dims) * dtype.itemsize).view(dtype)
        array = flat.reshape(dims[::-1]).T if by_columns else flat.reshape(dims)
        return array if kind == "array" else array[()]
    raise ValueError(f"{kind!r} is no kind of value")


def _pairs(listed: list[list[Any]], blocks: NDArray[np.uint8]) -> list[tuple[Any, Any]]:
    return [(unpacked(key, blocks), unpacked(value, blocks)) for key, value in listed]


def _block(blocks: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    if not 0 <= start <= start + size <= len(blocks):
        raise ValueError("a block lies outside")
    return blocks[start : start + size]


def _named(value: Any) -> str:
    return f"a {type(value).__qualname__}"
