"""How many bytes a Flower message takes on the wire, without serialising its arrays.

A deployment sends a message as its unique *objects* (message, record dict, records, arrays and
5 MiB chunks of array data, each under the SHA-256 of its content) plus the tree of their ids.
Ids have a fixed width, so sizes follow from lengths alone; only equality of arrays matters,
because identical objects are sent once, and that is found by comparing, not by hashing. What two
*different* arrays or records have in common (whole 5 MiB chunks) is counted twice.
A test holds these numbers against Flower's own serialisation.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES

_ID = "0" * 64  # a SHA-256 in hexadecimal


@dataclass(frozen=True)
class ArrayInfo:
    """What matters of an Array for its size: type, shape, serialisation, chunk lengths."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    chunk_lengths: tuple[int, ...]  # of unique chunks
    chunk_ids: tuple[int, ...]  # which unique chunk comes where


@dataclass(frozen=True)
class RecordInfo:
    """An ArrayRecord: its names, and its unique arrays in order of first appearance."""

    names: tuple[str, ...]
    unique: tuple[ArrayInfo, ...]

    @property
    def object_bytes(self) -> int:
        """Bytes of the record and everything below it."""
        body = len(json.dumps(dict.fromkeys(self.names, _ID)).encode())
        return _object("ArrayRecord", len(self.unique), body) + sum(
            _array_bytes(info) for info in self.unique
        )

    @property
    def tree_bytes(self) -> int:
        """Bytes of the record's object tree."""
        return _tree(_tree(_leaf() for _ in info.chunk_lengths) for info in self.unique)


def describe(record: ArrayRecord) -> RecordInfo:
    """Return what determines a record's size."""
    unique: list[Array] = []
    for array in record.values():
        if not any(equal(array, seen) for seen in unique):
            unique.append(array)
    return RecordInfo(tuple(record), tuple(_info(array) for array in unique))


def describe_dense(
    shapes: Iterable[tuple[str, str, tuple[int, ...], str, int]],
) -> RecordInfo:
    """Return the description of a record of distinct arrays that need not exist.

    Args:
        shapes: ``(name, dtype, shape, stype, length of data)`` of each array.
    """
    names, infos = [], []
    for name, dtype, shape, stype, size in shapes:
        lengths = _chunk_lengths(size)
        names.append(name)
        infos.append(ArrayInfo(dtype, shape, stype, lengths, tuple(range(len(lengths)))))
    return RecordInfo(tuple(names), tuple(infos))


def message_bytes(message: Message, arrays: Sequence[RecordInfo] | None = None) -> int:
    """Return the bytes of a message as a deployment sends it.

    Args:
        message: The message; its ids may have any width.
        arrays: Descriptions to use in place of the message's own ArrayRecords, in order.
    """
    envelope = _envelope_bytes(message)
    if not message.has_content():
        return envelope + _leaf()
    content = message.content
    infos = (
        list(arrays)
        if arrays is not None
        else [describe(record) for record in content.array_records.values()]
    )
    small = [r for r in content.values() if not isinstance(r, ArrayRecord)]
    unique_small = {record.deflate() for record in small}
    children = len(infos) + len(unique_small)
    refs = len(json.dumps(dict.fromkeys(content, _ID)).encode())
    objects = (
        envelope
        + _object("RecordDict", children, refs)
        + sum(info.object_bytes for info in infos)
        + sum(len(data) for data in unique_small)
    )
    leaves = [_leaf() for _ in unique_small]
    return objects + _tree([_tree([*(info.tree_bytes for info in infos), *leaves])])


def _envelope_bytes(message: Message) -> int:
    stand_in = copy.copy(message)
    stand_in.__dict__["_metadata"] = metadata = copy.copy(message.metadata)
    metadata.__dict__ = dict(message.metadata.__dict__)
    if metadata.reply_to_message_id:
        # Simulations use shorter ids than a deployment, whose ids are SHA-256 hashes.
        metadata.__dict__["_reply_to_message_id"] = _ID
    if message.has_content():
        stand_in.__dict__["_content"] = RecordDict()
    return len(stand_in.deflate())


def _info(array: Array) -> ArrayInfo:
    view = memoryview(array.data)
    unique: list[memoryview] = []
    ids: list[int] = []
    for start in range(0, len(view), CHUNK_BYTES):
        chunk = view[start : start + CHUNK_BYTES]
        known = next((i for i, seen in enumerate(unique) if seen == chunk), len(unique))
        if known == len(unique):
            unique.append(chunk)
        ids.append(known)
    lengths = tuple(len(chunk) for chunk in unique)
    return ArrayInfo(array.dtype, tuple(array.shape), array.stype, lengths, tuple(ids))


def equal(one: Array, other: Array) -> bool:
    """Return whether two arrays are one object on the wire."""
    return (
        len(one.data) == len(other.data)
        and one.dtype == other.dtype
        and tuple(one.shape) == tuple(other.shape)
        and one.stype == other.stype
        and one.data == other.data
    )


def _chunk_lengths(size: int) -> tuple[int, ...]:
    full, rest = divmod(size, CHUNK_BYTES)
    return (CHUNK_BYTES,) * full + ((rest,) if rest else ())


def _array_bytes(info: ArrayInfo) -> int:
    meta: dict[str, Any] = {
        "dtype": info.dtype,
        "shape": info.shape,
        "stype": info.stype,
        "arraychunk_ids": info.chunk_ids,
    }
    body = len(json.dumps(meta).encode())
    chunks = sum(_object("ArrayChunk", 0, length) for length in info.chunk_lengths)
    return _object("Array", len(info.chunk_lengths), body) + chunks


def _object(kind: str, children: int, body: int) -> int:
    ids = 65 * children - 1 if children else 0
    return len(f"{kind}  {body}") + ids + 1 + body


def _leaf() -> int:
    return 2 + len(_ID)


def _tree(children: Iterable[int]) -> int:
    """Bytes of an ObjectTree message: its own id and its length-prefixed children."""
    return _leaf() + sum(1 + _varint(size) + size for size in children)


def _varint(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
