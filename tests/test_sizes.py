"""Counted bytes against Flower's own serialisation, to the byte.

Tolerance 0: sizes are counted as a deployment has them, where message ids are SHA-256 hashes of 64
characters. A message with ids of another width is held against the same message with wide ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federations import flower_bytes, flower_objects
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_darex.flower.private import CHUNK_BYTES as CHUNK
from fl_darex.flower.private import adopt_run, answering, node_id_of, number, with_content
from fl_darex.flower.records import packet_record
from fl_darex.flower.sizes import Chunks, RecordInfo, describe, describe_dense, message_bytes
from fl_darex.masks import keep_threshold
from fl_darex.pruning import dare
from fl_darex.wire import encode

WIDE = "5e" * 32


@pytest.fixture(autouse=True)
def driver() -> None:
    adopt_run("test-sizes")


def instruction(content: RecordDict, kind: str = "train", **options: Any) -> Message:
    message = Message(content, node_id_of(3), kind, **options)
    number(message, WIDE)
    return message


def reply(content: RecordDict | Error, **options: Any) -> Message:
    return Message(content, reply_to=instruction(RecordDict(), **options))


def record(**arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def assert_counted_exactly(message: Message) -> None:
    counted, sent = message_bytes(message), flower_bytes(message)
    assert counted == sent


A, B = np.arange(10.0), np.arange(3, dtype=np.int64)


def chunks(*numbers: int) -> np.ndarray:
    """Bytes that fill one chunk for each number, the same number the same chunk."""
    filled = np.concatenate([np.full(CHUNK, number, np.uint8) for number in numbers])
    return filled[128:]  # the .npy header fills up the first


CONTENTS: dict[str, Callable[[], RecordDict]] = {
    "nothing": RecordDict,
    "one array": lambda: RecordDict({"arrays": record(w=A)}),
    "an empty record": lambda: RecordDict({"arrays": ArrayRecord()}),
    "empty records of each kind": lambda: RecordDict(
        {"a": ArrayRecord(), "m": MetricRecord(), "c": ConfigRecord()}
    ),
    "an empty array": lambda: RecordDict({"arrays": record(w=np.empty((0, 3)))}),
    "an array without data": lambda: RecordDict(
        {"arrays": ArrayRecord({"w": Array("uint8", (0,), "none", b"")})}
    ),
    "scalars": lambda: RecordDict({"arrays": record(a=np.array(1.5), b=np.array(True))}),
    "many dimensions": lambda: RecordDict({"arrays": record(a=np.ones((1,) * 30))}),
    "types": lambda: RecordDict(
        {"arrays": record(**{d: np.ones(3, d) for d in ("float16", "bool", "uint8", "complex64")})}
    ),
    "duplicate arrays": lambda: RecordDict({"arrays": record(a=A, b=A.copy(), c=B, d=B)}),
    "one array object under two names": lambda: RecordDict(
        {"arrays": ArrayRecord(dict.fromkeys(("a", "b"), Array(A)))}
    ),
    "the same data in another shape": lambda: RecordDict(
        {"arrays": record(a=A, b=A.reshape(2, 5), c=A.reshape(5, 2))}
    ),
    "two records": lambda: RecordDict({"one": record(a=A), "two": record(b=B)}),
    "many names": lambda: RecordDict(
        {"arrays": record(**{f"layer.{i}.weight": np.full(2, i) for i in range(300)})}
    ),
    "names beyond ASCII": lambda: RecordDict(
        {"größe": record(**{"层": A, "😀": B, 'quote"\\': A + 1}), "é": MetricRecord({"ß": 1.0})}
    ),
    "empty names": lambda: RecordDict({"": record(**{"": A})}),
    "metrics and settings": lambda: RecordDict(
        {
            "arrays": record(w=A),
            "metrics": MetricRecord({"loss": 0.5, "n": 3, "losses": [0.1, 0.2], "ns": [1, 2]}),
            "config": ConfigRecord({"lr": 0.1, "s": "größe", "b": b"\0\xff", "t": True, "l": [1]}),
        }
    ),
    "equal small records": lambda: RecordDict(
        {
            **{f"m{i}": MetricRecord({"x": 1.0}) for i in range(3)},
            **{f"c{i}": ConfigRecord({"x": 1.0}) for i in range(3)},
            "other": MetricRecord({"x": 2.0}),
        }
    ),
    "records in another order": lambda: RecordDict(
        {"config": ConfigRecord({"x": 1}), "arrays": record(w=A), "metrics": MetricRecord()}
    ),
    "a packet": lambda: RecordDict(
        {"arrays": packet_record(encode(dare({"w": np.arange(1e5)}, 0.99, seed=0)))}
    ),
    "one chunk, full": lambda: RecordDict({"arrays": record(w=chunks(1))}),
    "one chunk and a byte": lambda: RecordDict(
        {"arrays": record(w=np.append(chunks(1), np.uint8(7)))}
    ),
    "three chunks": lambda: RecordDict({"arrays": record(w=chunks(1, 2, 3))}),
    "identical chunks inside one array": lambda: RecordDict(
        {"arrays": record(w=chunks(1, 2, 2, 2))}
    ),
    "zeros": lambda: RecordDict({"arrays": record(w=np.zeros(CHUNK // 2, np.float64))}),
    "chunks that come back": lambda: RecordDict({"arrays": record(w=chunks(1, 2, 3, 2, 3, 1))}),
    "a short last chunk": lambda: RecordDict({"arrays": record(w=chunks(1, 2, 2)[:-1000])}),
    "duplicate arrays of many chunks": lambda: RecordDict(
        {"arrays": record(a=chunks(1, 2), b=chunks(1, 2))}
    ),
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("make", [instruction, reply])
def test_a_message_weighs_what_flower_sends(what, make):
    assert_counted_exactly(make(CONTENTS[what]()))


SHARED: dict[str, Callable[[], RecordDict]] = {
    "the same record object twice": lambda: RecordDict(dict.fromkeys("ab", record(w=A))),
    "equal records": lambda: RecordDict({"a": record(w=A), "b": record(w=A)}),
    "equal records in another order of names": lambda: RecordDict(
        {"a": record(v=A, w=B), "b": record(w=B, v=A), "c": record(v=A, w=B)}
    ),
    "records that differ in which array is repeated": lambda: RecordDict(
        {"a": record(u=A, v=A, w=B), "b": record(u=A, v=B, w=B), "c": record(u=A, v=B, w=A)}
    ),
    "the same arrays under other names": lambda: RecordDict(
        {"a": record(v=A, w=B), "b": record(w=A, v=B)}
    ),
    "an array in two records": lambda: RecordDict({"a": record(w=A), "b": record(w=A, x=B)}),
    "an array object in two records": lambda: RecordDict(
        dict.fromkeys("ab", ArrayRecord({"w": Array(A)})) | {"c": ArrayRecord({"v": Array(A)})}
    ),
    "empty records": lambda: RecordDict({"a": ArrayRecord(), "b": ArrayRecord()}),
    "arrays without data": lambda: RecordDict(
        {
            n: ArrayRecord({"w": Array("uint8", (0,), s, b"")})
            for n, s in zip("abc", "xyx", strict=True)
        }
    ),
    "the same data of another type": lambda: RecordDict(
        {
            name: ArrayRecord({"w": Array(dtype, shape, stype, b"12345678")})
            for name, (dtype, shape, stype) in {
                "a": ("float32", (2,), "s"),
                "b": ("int32", (2,), "s"),
                "c": ("float32", (2, 1), "s"),
                "d": ("float32", (2,), "t"),
                "e": ("float32", (2,), "s"),
            }.items()
        }
    ),
    "chunks in two arrays": lambda: RecordDict({"a": record(v=chunks(1, 2, 3), w=chunks(4, 2, 5))}),
    "chunks in two records": lambda: RecordDict(
        {"a": record(v=chunks(1, 2)), "b": record(w=chunks(3, 2))}
    ),
    "the same chunks in another order": lambda: RecordDict(
        {"a": record(v=chunks(0, 1, 2, 3)), "b": record(w=chunks(0, 3, 2, 1))}
    ),
    "zeros of two shapes": lambda: RecordDict(
        {"a": record(v=np.zeros(2 * CHUNK, np.int8), w=np.zeros((2, CHUNK), np.int8))}
    ),
    "the short end of two arrays": lambda: RecordDict(
        {"a": record(v=chunks(1, 3)[:-9], w=chunks(2, 3)[:-9], x=chunks(2, 3)[:-8])}
    ),
}


@pytest.mark.parametrize("what", SHARED)
@pytest.mark.parametrize("make", [instruction, reply])
def test_what_is_shared_between_arrays_or_records_is_counted_once(what, make):
    assert_counted_exactly(make(SHARED[what]()))


@pytest.mark.parametrize("size", [1, 127, 128, 5000, CHUNK - 129, CHUNK, 2 * CHUNK + 7])
@pytest.mark.parametrize("where", [0, 0.3, 0.5, 0.8, 1])
def test_arrays_that_differ_in_one_bit_are_two(size, where):
    one = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    other = one.copy()
    other[round(where * (size - 1))] ^= 1
    assert_counted_exactly(instruction(RecordDict({"a": record(v=one, w=other, x=one)})))
    assert_counted_exactly(instruction(RecordDict({"a": record(v=one), "b": record(v=other)})))


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.handshake", "query"])
@pytest.mark.parametrize("options", [{}, {"ttl": 1.5}, {"group_id": "7"}, {"group_id": "größe"}])
def test_every_kind_of_message_weighs_what_flower_sends(kind, options):
    for make in (instruction, reply):
        assert_counted_exactly(make(RecordDict({"a": record(w=A)}), kind=kind, **options))


@pytest.mark.parametrize("reason", [None, "", "it broke", "kaputt: größe\n" * 50])
@pytest.mark.parametrize("code", [0, 1, 3, 500])
def test_an_error_reply_weighs_what_flower_sends(code, reason):
    assert_counted_exactly(reply(Error(code=code, reason=reason)))


@pytest.mark.parametrize("width", [0, 1, 19, 36, 48, 64, 80])
def test_a_message_weighs_the_same_whatever_the_width_of_its_ids(width):
    content = RecordDict({"a": record(w=A), "m": MetricRecord({"x": 1.0})})
    question, narrow = instruction(content), instruction(content)
    number(narrow, "7" * width)
    assert message_bytes(narrow) == flower_bytes(question)
    answer, wide = Message(content, reply_to=narrow), Message(content, reply_to=question)
    if width:  # no id at all is no reply
        assert message_bytes(answer) == flower_bytes(wide)
        # As it is, the reply differs by the id, a digit of the body's length and two prefixes of
        # one byte: 16 bytes where ids have 51 to 77 characters.
        difference = message_bytes(answer) - flower_bytes(answer)
        assert abs(difference - (64 - width)) <= 3
    else:
        assert message_bytes(answer) == flower_bytes(answer)


RECORD = st.one_of(
    st.dictionaries(
        st.text(max_size=6),
        st.builds(
            lambda shape, value, dtype: Array(np.full(shape, value, dtype)),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
            st.integers(0, 2),
            st.sampled_from(["float32", "int64", "bool"]),
        ),
        max_size=5,
    ).map(ArrayRecord),
    st.dictionaries(
        st.text(max_size=6),
        st.integers(-(2**60), 2**60) | st.floats() | st.lists(st.floats(), max_size=3),
        max_size=4,
    ).map(MetricRecord),
    st.dictionaries(
        st.text(max_size=6),
        st.text(max_size=9) | st.binary(max_size=9) | st.booleans() | st.floats(),
        max_size=4,
    ).map(ConfigRecord),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.text(max_size=6), RECORD, max_size=5).map(RecordDict),
    st.sampled_from([instruction, reply]),
)
def test_any_message_weighs_what_flower_sends(content, make):
    assert_counted_exactly(make(content))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, CHUNK - 200),
    st.booleans(),
)
def test_any_pattern_of_chunks_weighs_what_flower_sends(patterns, cut, apart):
    arrays = {str(i): Array(chunks(*pattern)[cut:]) for i, pattern in enumerate(patterns)}
    records = [{name: array} for name, array in arrays.items()] if apart else [arrays]
    content = RecordDict({str(i): ArrayRecord(held) for i, held in enumerate(records)})
    assert_counted_exactly(instruction(content))


def test_a_packet_weighs_its_own_bytes_and_a_small_frame():
    packet = encode(dare({"w": np.arange(1e5)}, 0.99, seed=0), "fp16")
    survivors = (len(packet) - 96) / 2
    q = keep_threshold(0.99) / 2**32
    assert abs(survivors - 1e5 * q) <= 5 * (1e5 * q) ** 0.5
    content = RecordDict({"arrays": packet_record(packet)})
    message = reply(content)
    assert sum(packet in data for data in flower_objects(message)) == 1
    assert len(packet) < message_bytes(message) < len(packet) + 1100


def test_a_packet_above_the_chunk_size_weighs_what_flower_sends():
    packet = np.random.default_rng(0).bytes(CHUNK + 12345)
    assert_counted_exactly(reply(RecordDict({"arrays": packet_record(packet)})))


# --- descriptions --------------------------------------------------------------------------------

DISTINCT = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(1.5),
    "n": np.arange(4),
    "flag": np.array([True]),
    "none": np.empty((0, 7), np.float16),
    "größe": np.arange(3, dtype=np.uint8),
}


def dense_description(arrays: dict[str, np.ndarray]) -> Any:
    sent = record(**arrays).items()
    return describe_dense((n, a.dtype, a.shape, a.stype, len(a.data)) for n, a in sent)


def structure(info: RecordInfo) -> Any:
    """A description with its chunks numbered in order of appearance."""
    number: dict[Any, int] = {}
    return info.names, [
        (
            a.dtype,
            a.shape,
            a.stype,
            [(number.setdefault(c, len(number)), c.length) for c in a.chunks],
        )
        for a in info.arrays
    ]


def assert_describes(info: RecordInfo, arrays: dict[str, np.ndarray]) -> None:
    assert structure(info) == structure(describe(record(**arrays)))


def test_distinct_arrays_can_be_described_without_having_them():
    assert_describes(dense_description(DISTINCT), DISTINCT)


@pytest.mark.parametrize("extra", [-129, -128, -127, 0, 1, CHUNK - 128, CHUNK, 2 * CHUNK - 129])
def test_arrays_around_the_chunk_size_can_be_described_without_having_them(extra):
    numbers = np.random.default_rng(0).bytes(CHUNK + extra)
    arrays = {"w": np.frombuffer(numbers, np.uint8)}
    assert_describes(dense_description(arrays), arrays)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "float32"),
        ((0, 123_456_789, 987_654_321), "complex128"),
        ((1,) * 20, "float32"),  # numpy's header has 192 bytes here
    ],
)
def test_arrays_of_any_shape_can_be_described_without_having_them(shape, dtype):
    arrays = {"w": np.empty(shape, dtype)}
    assert_describes(dense_description(arrays), arrays)


def test_equal_arrays_are_described_as_if_training_had_moved_them_apart():
    before = {name: np.zeros(50) for name in "abc"}
    after = {name: np.arange(50.0) + index for index, name in enumerate("abc")}
    assert_describes(dense_description(before), after)
    assert structure(dense_description(before)) != structure(describe(record(**before)))


def test_records_described_together_share_what_is_equal_in_a_message():
    content = RecordDict({"a": record(w=A, x=B), "b": record(w=A), "c": record(w=A)})
    message, together = instruction(content), Chunks()
    infos = [describe(one, together) for one in content.array_records.values()]
    assert infos[1] == infos[2] != infos[0]
    assert message_bytes(message, infos) == flower_bytes(message)


def test_records_described_apart_share_nothing_in_a_message():
    whole = RecordDict({"a": record(w=A), "b": record(w=A + 1)})
    apart = [dense_description({"w": A}), dense_description({"w": A})]
    assert message_bytes(instruction(whole), apart) == flower_bytes(instruction(whole))


def test_a_description_takes_the_place_of_the_arrays_of_a_message():
    small = reply(RecordDict({"arrays": packet_record(b"packet"), "m": MetricRecord({"x": 1.0})}))
    content = RecordDict({"arrays": record(**DISTINCT), "m": MetricRecord({"x": 1.0})})
    whole = with_content(small, content)
    assert message_bytes(small, [dense_description(DISTINCT)]) == flower_bytes(whole)


def test_counting_leaves_the_message_as_it_was():
    content = RecordDict({"a": record(w=A), "m": MetricRecord({"x": 1.0})})
    message = instruction(content)
    ids = message.object_id, message.metadata.message_id
    again = answering(reply(content), "7")
    message_bytes(message), message_bytes(again)
    assert (message.object_id, message.metadata.message_id) == ids
    assert message.content is content
    assert again.content is content
    assert again.metadata.reply_to_message_id == "7"
