"""Packets and tensors as Flower records; arrays from strangers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl_darex.errors import PacketError
from fl_darex.flower.records import packet_of, packet_record, to_arrays, to_record, view_arrays

PACKET = b"DARX" + bytes(range(100))
TENSORS = {
    "bias": np.array([0.5, -0.25, 0.75], np.float32),
    "steps": np.array(258, np.int64),
    "weight": np.array([[1.0, -2.0, 3.0], [0.001, -5.0, 6.0]], np.float32),
}


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.ones(3))
    return buffer.getvalue()


NO_ARRAY = {
    "nothing": b"",
    "text": b"hello",
    "a pickle": b"\x80\x04N.",
    "a header alone": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x04N."),
    "a negative size": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }"),
    "no dictionary": npy("[1, 2]"),
}
# What numpy.load raises, or returns, for these is no ValueError.
NO_ARRAY_AND_NO_VALUE_ERROR = {
    "a broken zip file": b"PK\x03\x04junk",
    "a zip file": zipped(),
    "a huge size": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "0" * 15 + ",), }"),
    "an open bracket": npy("{'descr': '<f4', 'shape': ("),
    "a broken type": npy("{'descr': '<,4', 'fortran_order': False, 'shape': (3,), }"),
}


def stranger(data: bytes) -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (3,), "numpy.ndarray", data)})


@pytest.mark.parametrize("what", NO_ARRAY)
def test_bytes_that_are_no_array_are_refused(what):
    with pytest.raises(PacketError, match=r"the array '.*' (cannot be read|is not one array)"):
        to_arrays(stranger(NO_ARRAY[what]))


@pytest.mark.parametrize("what", NO_ARRAY_AND_NO_VALUE_ERROR)
def test_bytes_on_which_numpy_stumbles_are_refused(what):
    with pytest.raises(PacketError, match=r"the array '.*' (cannot be read|is not one array)"):
        to_arrays(stranger(NO_ARRAY_AND_NO_VALUE_ERROR[what]))


def test_arrays_go_into_a_record_and_come_back():
    tensors = {**TENSORS, "flag": np.array([True]), "half": np.ones((2, 0), np.float16)}
    again = to_arrays(to_record(tensors))
    assert list(again) == list(tensors)
    for name, array in tensors.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert again[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["f4", ">f4", "f8", "f2", "i8", "?", "u1", "c8", "U3"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (1,) * 20])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_has_the_bytes_that_flower_gives_it(dtype, shape, order):
    array = np.asarray(
        np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype), order=order
    )
    for one in (array, array[::2] if shape else array, array.T):
        mine, theirs = to_record({"w": one})["w"], Array(one)
        assert (mine.dtype, tuple(mine.shape), mine.stype) == (
            theirs.dtype,
            tuple(theirs.shape),
            theirs.stype,
        )
        assert mine.data == theirs.data


def test_a_view_of_a_record_shows_its_arrays_without_copying_them():
    tensors = {
        **TENSORS,
        "flag": np.array([True]),
        "half": np.ones((2, 0), np.float16),
        "columns first": np.asfortranarray(TENSORS["weight"]),
        "big": np.arange(5, dtype=">i4"),
    }
    record = to_record(tensors)
    for name, array in view_arrays(record).items():
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
        assert np.array_equal(array, tensors[name])
        assert np.shares_memory(array, np.frombuffer(record[name].data, np.uint8)) or not array.size
        assert not array.flags.writeable


@pytest.mark.parametrize("what", [*NO_ARRAY, *NO_ARRAY_AND_NO_VALUE_ERROR])
def test_a_view_of_bytes_that_are_no_array_is_refused(what):
    data = (NO_ARRAY | NO_ARRAY_AND_NO_VALUE_ERROR)[what]
    with pytest.raises(PacketError, match=r"the array '.*' (cannot be read|is not one array)"):
        view_arrays(stranger(data))


def test_a_packet_goes_into_a_record_and_comes_back():
    record = packet_record(PACKET)
    assert packet_of(record) == PACKET
    (array,) = record.values()
    assert (array.stype, array.dtype, array.shape) == ("darex.v1", "uint8", (len(PACKET),))
    with pytest.raises(PacketError, match=r"Unsupported serialization type .*darex\.v1"):
        to_arrays(record)
    with pytest.raises(
        TypeError, match=r"darex\.v1"
    ):  # plain Flower does not mistake it for a model
        record.to_numpy_ndarrays()


def test_a_record_of_ordinary_arrays_has_no_packet():
    (packet,) = packet_record(PACKET).values()
    for arrays in ({}, {"w": Array(np.ones(3))}, {"a": packet, "b": packet}):
        assert packet_of(ArrayRecord(arrays)) is None
