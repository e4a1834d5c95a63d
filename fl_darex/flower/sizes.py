"""How many bytes a Flower message takes on the wire, without serialising its arrays.

A deployment sends a message as its unique *objects* (message, record dict, records, arrays and
5 MiB chunks of array data, each under the SHA-256 of its content) plus the tree of their ids.
Ids have a fixed width, so sizes follow from lengths alone; only equality matters, because
identical objects are sent once. Chunks are told apart by comparing them, not by hashing; whatever
is made of the same chunks in the same way is then one object as well.
A test holds these numbers against Flower's own serialisation.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fl_darex.flower.private import CHUNK_BYTES, SType, answering, with_content
from fl_darex.flower.records import arrays_in

_ID = "0" * 64  # a SHA-256 in hexadecimal
_LEAF = 2 + len(_ID)  # bytes of an object tree without children
_ENVELOPES: dict[Hashable, int] = {}
_MOST_ENVELOPES = 1024


@dataclass(frozen=True, eq=False)
class Chunk:
    """Up to 5 MiB of an array's data, which need not exist; equal to itself alone."""

    length: int


class Chunks:
    """Gives equal stretches of data one and the same `Chunk`.

    It keeps the data that it has seen alive, so it should not outlive the messages.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[int, bytes], list[tuple[Chunk, bytes, int]]] = {}

    def of(self, data: bytes) -> tuple[Chunk, ...]:
        """Return the chunks of an array's data, in order."""
        return tuple(self._chunk(data, start) for start in range(0, len(data), CHUNK_BYTES))

    def _chunk(self, data: bytes, start: int) -> Chunk:
        view = memoryview(data)[start : start + CHUNK_BYTES]
        alike = self._alike.setdefault(_glance(view), [])
        for chunk, other, at in alike:
            # Unlike views, which compare item by item, this is one memcmp without a copy.
            if other.startswith(view, at, at + len(view)):
                return chunk
        alike.append((Chunk(len(view)), data, start))
        return alike[-1][0]


@dataclass(frozen=True)
class ArrayInfo:
    """What matters of an Array for its size; equal for arrays that are one object on the wire."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class RecordInfo:
    """An ArrayRecord: its names and the array of each, equal as records are on the wire."""

    names: tuple[str, ...]
    arrays: tuple[ArrayInfo, ...]

    @cached_property
    def objects(self) -> dict[Hashable, int]:
        """The record and everything below it, each once, with its bytes."""
        unique = dict.fromkeys(self.arrays)
        body = len(json.dumps(dict.fromkeys(self.names, _ID)).encode())
        sizes: dict[Hashable, int] = {self: _object("ArrayRecord", len(unique), body)}
        for info in unique:
            sizes[info] = _array_bytes(info)
            sizes.update((chunk, _object("ArrayChunk", 0, chunk.length)) for chunk in info.chunks)
        return sizes

    @cached_property
    def tree_bytes(self) -> int:
        """Bytes of the record's object tree, which names an object under each of its parents."""
        unique = dict.fromkeys(self.arrays)
        return _tree(_tree(_LEAF for _ in dict.fromkeys(info.chunks)) for info in unique)


def describe(record: ArrayRecord, chunks: Chunks | None = None) -> RecordInfo:
    """Return what determines a record's size.

    Args:
        record: The record.
        chunks: Where the record's chunks are looked up; records that may stand in one message
            need to be described with the same, or what they share is counted twice.
    """
    chunks = Chunks() if chunks is None else chunks
    infos = (
        ArrayInfo(array.dtype, tuple(array.shape), array.stype, chunks.of(array.data))
        for array in record.values()
    )
    return RecordInfo(tuple(record), tuple(infos))


def describe_dense(
    shapes: Iterable[tuple[str, str, tuple[int, ...], str, int]],
) -> RecordInfo:
    """Return the description of a record of distinct arrays that need not exist.

    Args:
        shapes: ``(name, dtype, shape, stype, length of data)`` of each array.
    """
    names, infos = [], []
    for name, dtype, shape, stype, size in shapes:
        names.append(name)
        starts = range(0, size, CHUNK_BYTES)
        chunks = tuple(Chunk(min(CHUNK_BYTES, size - start)) for start in starts)
        infos.append(ArrayInfo(dtype, shape, stype, chunks))
    return RecordInfo(tuple(names), tuple(infos))


def trained_info(record: ArrayRecord, sent: RecordInfo) -> RecordInfo:
    """Describe the record that would come back whole, after training.

    Args:
        record: A model.
        sent: As it is now, where parts may be equal that training tells apart.
    """
    apart = describe_dense(
        (name, array.dtype, tuple(array.shape), array.stype, len(array.data))
        for name, array in record.items()
    )
    first: dict[ArrayInfo, ArrayInfo] = {}
    arrays = []
    for array, before, after in zip(record.values(), sent.arrays, apart.arrays, strict=True):
        if before in first and _stays_equal(array):
            after = first[before]
        first.setdefault(before, after)
        arrays.append(after)
    return replace(apart, arrays=tuple(arrays))


def _stays_equal(array: Array) -> bool:
    """Whether arrays equal to this one are so on purpose (tied, counters), not by their start.

    Many biases begin as zeros and scales as ones; training tells them apart.
    """
    if "float" not in array.dtype or array.stype != SType.NUMPY:
        return True
    values = array.numpy()
    return values.size > 1 and bool((values != values.flat[0]).any())


def message_bytes(message: Message, arrays: Sequence[RecordInfo] | None = None) -> int:
    """Return the bytes of a message as a deployment sends it.

    Args:
        message: The message; its ids may have any width.
        arrays: Descriptions to use in place of the message's own ArrayRecords, in order.
    """
    envelope = _envelope_bytes(message)
    if not message.has_content():
        return envelope + _LEAF
    content = message.content
    if arrays is None:
        chunks = Chunks()
        arrays = [describe(record, chunks) for record in arrays_in(content).values()]
    objects: dict[Hashable, int] = {}
    trees: dict[Hashable, int] = {}  # of the unique records
    for info in arrays:
        objects.update(info.objects)
        trees[info] = info.tree_bytes
    for record in content.values():
        if not isinstance(record, ArrayRecord):
            data = record.deflate()
            objects[data], trees[data] = len(data), _LEAF
    refs = len(json.dumps(dict.fromkeys(content, _ID)).encode())
    own = envelope + _object("RecordDict", len(trees), refs)
    return own + sum(objects.values()) + _tree([_tree(trees.values())])


def _envelope_bytes(message: Message) -> int:
    """Return the bytes of a message's metadata, and of its error if it has one.

    They follow from what is told apart here, so that one message of a round stands for all: of
    numbers that a protocol buffer writes in as many bytes as they need, how many those are.
    """
    data = message.metadata
    error = (message.error.code, message.error.reason) if message.has_error() else None
    varints = (data.run_id, data.src_node_id, data.dst_node_id, data.src_task_id, data.dst_task_id)
    doubles = (data.ttl, data.created_at)
    key = (
        *(None if number is None else _varint(number) if number else 0 for number in varints),
        *(number == 0 for number in doubles),
        *(data.group_id, data.message_type, bool(data.reply_to_message_id)),
        *(message.has_content(), error),
    )
    if (known := _ENVELOPES.get(key)) is None:
        if len(_ENVELOPES) == _MOST_ENVELOPES:  # errors' reasons are strangers' texts
            _ENVELOPES.clear()
        # An engine may use shorter ids than a deployment, whose ids are SHA-256 hashes.
        envelope = answering(message, _ID) if data.reply_to_message_id else message
        if message.has_content():
            envelope = with_content(envelope, RecordDict())
        known = _ENVELOPES[key] = len(envelope.deflate())
    return known


def _glance(view: memoryview) -> tuple[int, bytes]:
    """Return what nearly always tells unequal data apart: the length and some 1000 bytes."""
    # An odd step looks at every byte of a number in turn; the low ones are often all zero.
    return len(view), bytes(view[:: len(view) // 1024 | 1])


def _array_bytes(info: ArrayInfo) -> int:
    places = {chunk: place for place, chunk in enumerate(dict.fromkeys(info.chunks))}
    meta: dict[str, Any] = {
        "dtype": info.dtype,
        "shape": info.shape,
        "stype": info.stype,
        "arraychunk_ids": [places[chunk] for chunk in info.chunks],
    }
    return _object("Array", len(places), len(json.dumps(meta).encode()))


def _object(kind: str, children: int, body: int) -> int:
    ids = 65 * children - 1 if children else 0
    return len(f"{kind}  {body}") + ids + 1 + body


def _tree(children: Iterable[int]) -> int:
    """Bytes of an ObjectTree message: its own id and its length-prefixed children."""
    return _LEAF + sum(1 + _varint(size) + size for size in children)


def _varint(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
