"""A coding from outside the package: one class, one row, and packets can be written and read."""

from __future__ import annotations

import numpy as np
import pytest
from golden import LAYOUT, TENSORS
from numpy.typing import NDArray

from fl_darex.errors import ConfigError, PacketError, Reason
from fl_darex.pruning import dare
from fl_darex.wire import decode, encode
from fl_darex.wire.codings import CODINGS, Coding
from fl_darex.wire.codings.coding import Numbers
from fl_darex.wire.reader import read_packet


class Eighths:
    """Multiples of an eighth in a byte; derived from nothing."""

    name, code, bits = "eighths", 200, 8.0

    def size(self, count: int) -> int:
        return count

    def exponent(self, largest: np.float32) -> int:
        return 3

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        return np.rint(numbers * 2.0**exponent).astype(np.int8).tobytes()

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        if exponent != 3:
            raise PacketError("eighths have the exponent 3", Reason.VALUES)
        return 16.0

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        return np.frombuffer(data[start:end], np.int8).astype(np.float32) / np.float32(8)


class Named(Eighths):
    """The same with another name or code."""

    def __init__(self, name: str = "eighths", code: int = 200) -> None:
        self.name, self.code = name, code


@pytest.fixture
def eighths(monkeypatch: pytest.MonkeyPatch) -> Coding:
    monkeypatch.setattr(CODINGS, "_rows", dict(CODINGS))  # taken back after the test
    return CODINGS.add(Eighths())


def packet() -> bytes:
    return encode(dare(TENSORS, 0.5, seed=7, round_=3, slot=2), "eighths")


def test_packets_are_written_and_read_in_an_own_coding(eighths):
    update = dare(TENSORS, 0.5, seed=7, round_=3, slot=2)
    read = decode(packet(), LAYOUT, update.mask, q=0.5, values="eighths")
    assert packet()[7] == 200 and packet()[48] == 3
    assert read.numbers.tolist() == [0.75, 1.0, 3.0, 0.0]
    assert read.dense["bn.running_var"].tolist() == [0.125, -0.5]


def test_a_packet_in_a_coding_that_a_receiver_does_not_know_is_refused(eighths, monkeypatch):
    sent = packet()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"values must be one of .*, got 'eighths'"):
        packet()
    with pytest.raises(PacketError, match=r"unknown value coding 200; this receiver knows fp32"):
        read_packet(sent, LAYOUT)


def test_a_coding_can_be_named_as_module_and_class(eighths):
    assert CODINGS.choose(f"{__name__}:Eighths").code == 200


def test_a_class_in_place_of_a_coding_is_refused_although_it_has_all_that_one_has():
    with pytest.raises(ConfigError, match="Eighths'> is no object of a class derived from"):
        CODINGS.add(Eighths)  # type: ignore[arg-type]
    assert "eighths" not in CODINGS


@pytest.mark.parametrize("name", [None, 5, "", "a:b", ["a"]])
def test_a_name_that_is_no_text_or_could_be_a_module_is_refused(name):
    with pytest.raises(ConfigError, match=r"coding Named has the name .*; a name is text"):
        CODINGS.add(Named(name=name, code=201))


@pytest.mark.parametrize("code", [0, 3, 127, 256, -1, "x"])
def test_a_code_of_the_format_or_of_no_byte_is_refused(code):
    with pytest.raises(ConfigError, match="allowed: 128 to 255"):
        CODINGS.add(Named(code=code))


class Narrow(Eighths):
    dtype = np.float16


def test_numbers_of_an_own_coding_are_float32_or_float64():
    with pytest.raises(ConfigError, match="'eighths' has numbers of type float16; allowed: float3"):
        CODINGS.add(Narrow())


def test_a_code_or_name_that_another_coding_has_is_refused(eighths):
    with pytest.raises(ConfigError, match="has the code 200 of 'eighths'; give it another one"):
        CODINGS.add(Named(name="other"))
    with pytest.raises(ConfigError, match="'fp16' is there already"):
        CODINGS.add(Named(name="fp16", code=201))
