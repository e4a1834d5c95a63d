"""QSGD's codings, against a transcription of Alistarh et al. in float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from federations import CLIENTS, fedavg, run

from fl_darex.masks import words
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.codings import CODINGS, nature_of
from fl_darex.wire.codings.coding import noise_of
from fl_darex.wire.codings.scales import BLOCK

LEVELS = {"qsgd8": 127, "qsgd4": 7, "qsgd2": 1}
NUMBERS = np.random.default_rng(0).normal(scale=1e-3, size=3 * BLOCK + 41).astype(np.float32)
NUMBERS[:3] = 0, 1e-30, -1e-30


def reread(name: str, numbers: np.ndarray, round_: int) -> np.ndarray:
    coding = CODINGS[name]
    data = memoryview(coding.write(numbers, 0, noise_of(3, round_, 0)))
    assert coding.largest(data, numbers.size, 0) >= np.abs(numbers).max(initial=0)
    return coding.read(data, numbers.size, 0, 0, numbers.size)


def travels(number: float) -> float:
    """The upper half of a float32 that is no smaller: a norm's two bytes."""
    (bits,) = struct.unpack("<I", struct.pack("<f", np.float32(number)))
    return float(struct.unpack("<f", struct.pack("<I", (bits // 65536 + 1) * 65536))[0])


def quantised(v: np.ndarray, s: int, uniform: np.ndarray) -> np.ndarray:
    """Q_s(v) of the paper for one bucket, with the norm that travels."""
    norm = s * travels(np.linalg.norm(v.astype(np.float64)) / s)
    a = np.abs(v.astype(np.float64)) / norm * s
    level = np.floor(a)
    level += uniform < a - level
    return norm * np.sign(v) * level / s


@pytest.mark.parametrize(("name", "s"), LEVELS.items())
def test_numbers_become_the_levels_of_the_paper(name: str, s: int) -> None:
    uniform = words(noise_of(3, 1, 0), 0, NUMBERS.size + NUMBERS.size % 2)[: NUMBERS.size] / 2**32
    uniform[NUMBERS < 0] = 1 - uniform[NUMBERS < 0]  # "up" is towards 0 there
    found = reread(name, NUMBERS, 1)
    for start in range(0, NUMBERS.size, BLOCK):
        bucket = NUMBERS[start : start + BLOCK]
        expected = quantised(bucket, s, uniform[start : start + bucket.size])
        mine = found[start : start + bucket.size]
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=0)
        norm = np.linalg.norm(bucket.astype(np.float64))
        assert norm <= s * travels(norm / s) <= norm * (1 + 2.0**-7)


@pytest.mark.parametrize(("name", "s"), LEVELS.items())
def test_they_are_unbiased_with_the_variance_of_the_paper(name: str, s: int) -> None:
    draws, total, squares = 3000, np.zeros(BLOCK), 0.0
    bucket = NUMBERS[BLOCK : 2 * BLOCK].astype(np.float64)
    for round_ in range(1, draws + 1):
        read = reread(name, NUMBERS[BLOCK : 2 * BLOCK], round_).astype(np.float64)
        total, squares = total + read, squares + float(np.square(read - bucket).sum())
    norm = np.linalg.norm(bucket)
    # An entry is between two levels, a step apart: its variance is f (1 - f) of that squared.
    step = travels(norm / s)
    part = np.abs(bucket) / step % 1
    deviation = step * np.sqrt(part * (1 - part) / draws)
    # One draw more or less: where a chance is next to 0 or 1, draws are no normal distribution.
    assert (np.abs(total / draws - bucket) <= 5 * deviation + 5 * step / draws).all()
    error = squares / draws / norm**2
    assert error <= min(BLOCK / s**2, np.sqrt(BLOCK) / s) * 1.01  # Lemma 3.1
    assert error == pytest.approx({127: 0.00265, 7: 0.87, 1: 11.8}[s], rel=0.1)


def test_int4_is_nearer_as_its_scale_is_the_largest_number_not_the_length() -> None:
    for mine, other in (("int8", "qsgd8"), ("int4", "qsgd4")):
        gaps = [np.square(reread(name, NUMBERS, 5) - NUMBERS).sum() for name in (mine, other)]
        assert gaps[0] < gaps[1] / 15
        assert CODINGS[mine].size(1000) == CODINGS[other].size(1000)


def test_few_levels_make_most_numbers_zero_and_zeros_stay() -> None:
    read = reread("qsgd2", NUMBERS, 1)
    assert 0.02 < np.count_nonzero(read) / read.size < 0.1
    for name in LEVELS:
        assert not reread(name, np.zeros(600, np.float32), 1).any()
        nature = nature_of(name)
        assert nature.zeros and not nature.biased and not nature.rotated


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1.0, 1e30, 1e36])
@pytest.mark.parametrize("name", LEVELS)
def test_blocks_of_any_magnitude_are_read(name: str, size: float) -> None:
    numbers = np.full(BLOCK + 5, size, np.float32)
    read = reread(name, numbers, 1).astype(np.float64)
    step = size * np.sqrt(BLOCK) / LEVELS[name]
    assert np.abs(read - numbers).max() <= step * 1.01 + 2.0**-133


@pytest.mark.parametrize("name", LEVELS)
def test_a_federation_without_dropping_sends_them(name: str) -> None:
    made = DarexStrategy(fedavg(), 0.0, values=name, downlink_values="fp32", seed=1)
    dense = run(DarexStrategy(fedavg(), 0.0, values="fp32", seed=1), 2)
    found = run(made, 2)
    assert made.counted == CLIENTS
    gap = sum(float(np.square(found[k] - dense[k]).sum()) for k in dense)
    moved = sum(float(np.square(dense[k]).sum()) for k in dense)
    assert 0 < gap < moved
