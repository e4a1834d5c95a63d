"""EDEN: its noise against theory, without bias, the same bits everywhere, and what reads it."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_darex.compression import Uplink
from fl_darex.delta import Delta, Layout
from fl_darex.errors import DeltaError, PacketError
from fl_darex.masks import ONE
from fl_darex.positions import SeededMask
from fl_darex.pruning.gather import gather
from fl_darex.wire import encode
from fl_darex.wire.codings import CODINGS, scaled
from fl_darex.wire.codings.coding import noise_of
from fl_darex.wire.codings.eden import Eden
from fl_darex.wire.reader import read_packet

NAMES = ["eden1", "eden2", "eden3", "eden4"]
RNG = np.random.default_rng(5)
SIZE = 2048
KINDS = {
    "gaussian": RNG.standard_normal(SIZE),
    "heavy-tailed": RNG.standard_t(3, SIZE),
    "sparse": RNG.standard_normal(SIZE) * (RNG.random(SIZE) < 0.01),
    "of two": 2.0 * np.eye(1, SIZE, 3)[0] + np.eye(1, SIZE, 700)[0],
    "one-hot": np.eye(1, SIZE, 5)[0],
    "constant": np.full(SIZE, 0.25),
}


def again(name: str, numbers: NDArray[np.float32], round_: int = 0) -> NDArray[np.float32]:
    coding = CODINGS[name]
    data = memoryview(coding.write(numbers, 0, noise_of(1, round_, 0)))
    assert len(data) == coding.size(numbers.size)
    assert np.abs(coding.read(data, numbers.size, 0, 0, numbers.size)).max(
        initial=0
    ) <= coding.largest(data, numbers.size, 0)
    return coding.read(data, numbers.size, 0, 0, numbers.size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_noise_is_that_of_theory_and_the_mean_over_rotations_is_what_was_written(name, kind):
    numbers, times = KINDS[kind].astype(np.float32), 200
    read = np.stack([again(name, numbers, round_) for round_ in range(times)]).astype(np.float64)
    length = float((numbers.astype(np.float64) ** 2).sum())
    noise = ((read - numbers) ** 2).sum(axis=1) / length
    theory = CODINGS[name].nmse
    assert noise.mean() == pytest.approx(theory, rel=0.03)
    # Of numbers that are right on average the mean of so many is off by their noise over that many.
    off = ((read.mean(axis=0) - numbers) ** 2).sum() / length
    assert off <= theory / times * (1 + 5 * math.sqrt(2 / SIZE)) * 1.05
    # Along what was written there is no noise but the scale's own rounding.
    assert read @ numbers.astype(np.float64) / length == pytest.approx(1.0, abs=2**-8)
    # And number by number, within five standard errors.
    error = read.std(axis=0, ddof=1) / math.sqrt(times)
    assert (np.abs(read.mean(axis=0) - numbers) <= 5 * error + 1e-6).all()


def test_one_bit_has_the_noise_of_half_pi_less_one():
    assert CODINGS["eden1"].nmse == pytest.approx(math.pi / 2 - 1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_squares_scale_is_nearer_and_shorter(name):
    numbers = KINDS["gaussian"].astype(np.float32)
    coding, usual = scaled(CODINGS[name], "least-squares"), CODINGS[name]
    written = [memoryview(coding.write(numbers, 0, noise_of(1, i, 0))) for i in range(30)]
    # A reader need not know.
    read = np.stack([usual.read(data, SIZE, 0, 0, SIZE) for data in written]).astype(np.float64)
    length = float((numbers.astype(np.float64) ** 2).sum())
    noise = ((read - numbers) ** 2).sum(axis=1) / length
    assert noise.mean() == pytest.approx(coding.nmse, rel=0.05)
    assert coding.nmse == pytest.approx(usual.nmse / (1 + usual.nmse))
    assert (read @ numbers / length).mean() == pytest.approx(1 - coding.nmse, rel=0.01)
    for factor in (0.98, 1.02):  # no other scale is nearer
        assert (((read * factor - numbers) ** 2).sum(axis=1) / length > noise).all()


def test_only_eden_has_a_least_squares_scale():
    with pytest.raises(ValueError, match="scale = 'least-squares' is for values = 'eden1' to"):
        Uplink.of("dare", 0.9, values="int8", scale="least-squares")
    assert Uplink.of("dare", 0.9, values="eden2", scale="least-squares").scale == "least-squares"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40_000), st.sampled_from(NAMES))
def test_filling_up_costs_below_a_hundredth_of_many_numbers(count, name):
    coding, width = CODINGS[name], int(name[-1])
    most = 63 * width / 8 + 8 + 2 * (count // 16384 + 9)
    assert count * width / 8 <= coding.size(count) <= count * width / 8 + most
    assert coding.size(1_000_000) * 8 / (1_000_000 * width) < 1.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 16383, 16384, 16385])
def test_a_packet_reads_the_same_numbers_in_any_pieces_from_front_to_back(name, size):
    tensors = {"w": np.random.default_rng(size).standard_normal(size).astype(np.float32)}
    layout = Layout.of(tensors)
    survivors = gather(Delta(tensors, layout=layout), SeededMask(0, 1, 0, ONE), 1.0)
    packet = read_packet(encode(survivors, name), layout)
    whole = packet.numbers()
    for step in (1000, 3000, 16384, 17000):
        parts = [packet.numbers(at, min(size, at + step)) for at in range(0, size, step)]
        for part in parts:
            part.flags.writeable and part.__imul__(1)  # each is the caller's own
        assert np.concatenate([np.empty(0, np.float32), *parts]).tobytes() == whole.tobytes()


def test_one_and_two_threads_write_the_same_bytes():
    code = (
        "import numpy as np, hashlib\n"
        "from fl_darex.wire.codings import CODINGS\n"
        "x = np.random.default_rng(3).standard_normal(50_000).astype(np.float32)\n"
        "for width in (1, 2, 3, 4):\n"
        "    coding = CODINGS[f'eden{width}']\n"
        "    data = coding.write(x, 0, np.array([9], np.uint64))\n"
        "    read = coding.read(memoryview(data), x.size, 0, 0, x.size)\n"
        "    print(hashlib.sha256(data + read.tobytes()).hexdigest())\n"
    )
    found = set()
    for threads in ("1", "2"):
        named = {key: threads for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | named, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout.strip())
    assert len(found) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_numbers_that_a_rotation_cannot_hold_are_refused_by_the_writer(value):
    tensors = {"w": np.full(100, value, np.float32)}
    survivors = gather(Delta(tensors), SeededMask(0, 1, 0, ONE), 1.0)
    with pytest.raises(DeltaError, match=r"NaN or infinite|is infinite in float32"):
        encode(survivors, "eden1")


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e-20, 1e20])
def test_magnitudes_of_any_size_are_met(value):
    numbers = (KINDS["gaussian"] * value).astype(np.float32)
    read = again("eden4", numbers)
    assert np.isfinite(read).all()
    if value >= 1e-20:
        assert np.linalg.norm(read / value - numbers / value) < 0.12 * math.sqrt(SIZE)
    if not value:
        assert not read.any()


@pytest.mark.parametrize("bits", [0x7F80, 0x7FC0, 0x8001, 0xFFFF])
def test_a_scale_that_no_writer_writes_is_refused(bits):
    coding = CODINGS["eden1"]
    data = bytearray(coding.write(np.ones(70, np.float32), 0, noise_of(0, 0, 0)))
    data[8:10] = bits.to_bytes(2, "little")
    with pytest.raises(PacketError, match="scale that is no number above 0"):
        coding.largest(memoryview(bytes(data)), 70, 0)


def test_a_stranger_cannot_make_a_number_larger_than_the_bound():
    coding, count = Eden(4), 64
    data = bytearray(coding.write(np.ones(count, np.float32), 0, np.array([1], np.uint64)))
    largest = coding.largest(memoryview(bytes(data)), count, 0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data[10:] = rng.integers(0, 256, 32, dtype=np.uint8).tobytes()
        read = coding.read(memoryview(bytes(data)), count, 0, 0, count)
        assert np.abs(read).max() <= largest
