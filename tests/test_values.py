"""How packets write numbers: any part can be read alone, and rounding is what it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.positions.bits import pack, packed_size, padding_is_zero, unpack
from fl_darex.wire.codings import CODINGS, Coding, dense_coding, dense_parts, type_of
from fl_darex.wire.codings.eden import Eden
from fl_darex.wire.codings.scales import BLOCK

COUNTS = [0, 1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]
FLOATS = npst.arrays(
    np.float32,
    st.integers(0, 3 * BLOCK),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def noise(key: int = 0) -> np.ndarray:
    return np.array([key * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64)


def written(coding: Coding, numbers: np.ndarray, key: int = 0) -> tuple[memoryview, int]:
    exponent = coding.exponent(np.abs(numbers).max(initial=np.float32(0)))
    return memoryview(coding.write(numbers, exponent, noise(key))), exponent


def reread(coding: Coding, numbers: np.ndarray, key: int = 0) -> np.ndarray:
    data, exponent = written(coding, numbers, key)
    return coding.read(data, numbers.size, exponent, 0, numbers.size)


def gaussian(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=1e-3, size=count).astype(np.float32)


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("count", COUNTS)
def test_numbers_take_the_bytes_that_are_announced(name, count):
    data, _ = written(CODINGS[name], gaussian(count))
    assert len(data) == CODINGS[name].size(count)


@pytest.mark.parametrize("name", CODINGS)
def test_the_announced_bits_a_number_are_what_many_numbers_take(name):
    coding, many = CODINGS[name], 256 * BLOCK
    once = 64 if isinstance(coding, Eden) else 0  # what its rotation is drawn from
    assert coding.size(many) * 8 == coding.bits * many + once


@settings(deadline=None, max_examples=200)
@given(FLOATS, st.sampled_from(sorted(CODINGS)), st.data())
def test_any_part_of_the_numbers_can_be_read_alone(numbers, name, data):
    coding, count = CODINGS[name], numbers.size
    packed, exponent = written(coding, numbers)
    whole = coding.read(packed, count, exponent, 0, count)
    start = data.draw(st.integers(0, count))
    end = data.draw(st.integers(start, count))
    part = coding.read(packed, count, exponent, start, end)
    assert part.dtype == type_of(coding)
    assert part.tobytes() == whole[start:end].tobytes()


@settings(deadline=None, max_examples=200)
@given(FLOATS, st.sampled_from(sorted(CODINGS)))
def test_no_number_is_larger_than_the_bound_that_the_check_returns(numbers, name):
    coding, count = CODINGS[name], numbers.size
    packed, exponent = written(coding, numbers)
    bound = coding.largest(packed, count, exponent)
    read = coding.read(packed, count, exponent, 0, count)
    assert np.abs(read).max(initial=0) <= bound * (1 + 1e-6)
    # Float codings: the bound is reached. Blocks: it is the scale's, 1 % above at most.
    if name in ("fp64", "fp32", "fp16", "bf16"):
        assert np.abs(read).max(initial=0) == np.float32(bound)


@settings(deadline=None)
@given(
    st.sampled_from([np.float32, np.float64]).flatmap(lambda k: npst.arrays(k, st.integers(0, 20)))
)
def test_fp32_and_fp64_keep_every_bit_and_refuse_to_read_nan(numbers):
    coding = CODINGS[f"fp{8 * numbers.dtype.itemsize}"]
    data = memoryview(numbers.tobytes())
    if np.isfinite(numbers).all():
        assert coding.largest(data, numbers.size, 0) == np.abs(numbers).max(initial=0)
        assert coding.read(data, numbers.size, 0, 0, numbers.size).tobytes() == numbers.tobytes()
    else:
        with pytest.raises(PacketError, match="NaN or infinite") as caught:
            coding.largest(data, numbers.size, 0)
        assert caught.value.reason == Reason.VALUES


@settings(deadline=None, max_examples=300)
@given(st.floats(-(2.0**126), 2.0**126, width=32))
def test_bf16_rounds_to_the_nearest_of_its_numbers_and_ties_to_even(number):
    exact = np.array([number], np.float32)
    (read,) = reread(CODINGS["bf16"], exact)
    bits = int(np.array([read]).view(np.uint32)[0])
    assert bits & 0xFFFF == 0
    # Neighbours of that number, one bfloat16 step away on both sides of it.
    for other in (bits + 0x10000, bits - 0x10000):
        if 0 <= other < 2**32:
            (there,) = np.array([other], np.uint32).view(np.float32)
            if np.isfinite(there):
                near, far = abs(float(read) - number), abs(float(there) - number)
                assert near < far or (near == far and bits >> 16 & 1 == 0)


def test_bf16_is_what_torch_calls_bfloat16():
    import torch

    numbers = np.concatenate([gaussian(5000), gaussian(5000) * np.float32(1e30)])
    expected = torch.from_numpy(numbers).bfloat16().float().numpy()
    assert reread(CODINGS["bf16"], numbers).tobytes() == expected.tobytes()


# --- integers in blocks -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "top"), [("int8", 127), ("int4", 7)])
def test_stochastic_rounding_is_unbiased(name, top):
    numbers = np.concatenate([gaussian(200), np.float32([0, 1e-3, -1e-3, 1e-7, 0.004])])
    draws, total = 4000, np.zeros(numbers.size)
    for key in range(1, draws + 1):
        total += reread(CODINGS[name], numbers, key)
    # Rounding between two codes has a variance of at most a quarter of the step squared.
    step = np.abs(numbers).max() / top * 1.01
    error = step / 2 / draws**0.5
    assert np.abs(total / draws - numbers).max() <= 5 * error
    # All together: the errors are independent, so their mean is that much smaller.
    assert abs((total / draws - numbers).mean()) <= 5 * error / numbers.size**0.5


@pytest.mark.parametrize(("name", "top"), [("int8", 127), ("int4", 7)])
@settings(deadline=None, max_examples=200)
@given(numbers=FLOATS, key=st.integers(0, 2**32))
def test_integers_are_off_by_less_than_a_step_of_their_own_block(name, top, numbers, key):
    read = reread(CODINGS[name], numbers, key).astype(np.float64)
    for start in range(0, numbers.size, BLOCK):
        mine = numbers[start : start + BLOCK].astype(np.float64)
        # The scale is rounded up by 2**-7 at most; below 2**-126 its own step is 2**-133.
        step = np.abs(mine).max() / top * (1 + 2**-7) + 2.0**-133
        assert (np.abs(read[start : start + BLOCK] - mine) < step * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["int8", "int4", "sign"])
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1.0, 1e30, 3e38])
def test_blocks_of_any_magnitude_keep_their_largest_number(name, size):
    numbers = np.full(BLOCK + 5, size, np.float32)
    read = reread(CODINGS[name], numbers)
    # One step, where it is rounded down; a subnormal scale is at most 2**-133 too large.
    step = size / {"int8": 127, "int4": 7, "sign": 127}[name]
    assert np.abs(read - numbers).max() <= step * 1.01 + 2.0**-133


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_zeros_stay_zeros_and_share_no_scale_with_other_blocks(name):
    numbers = np.zeros(3 * BLOCK, np.float32)
    numbers[BLOCK : 2 * BLOCK] = gaussian(BLOCK) * 1e6
    read = reread(CODINGS[name], numbers)
    assert not read[:BLOCK].any() and not read[2 * BLOCK :].any()
    assert np.abs(read[BLOCK : 2 * BLOCK]).max() > 0


def test_rounding_follows_the_noise_alone():
    numbers = gaussian(1000)
    one, again, other = (reread(CODINGS["int4"], numbers, key) for key in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_zero_is_not_moved_by_the_noise():
    scale = np.float32(2.0**-10)
    numbers = np.arange(-7, 8, dtype=np.float32) * scale
    for key in range(20):
        read = reread(CODINGS["int4"], numbers, key)
        # The scale is rounded up, so never exactly 2**-10: others than 0 may be a step off.
        assert read[7] == 0
        assert np.abs(read - numbers).max() <= scale * 1.01


@settings(deadline=None)
@given(FLOATS)
@example(np.array([1e-45], np.float32))
def test_sign_keeps_signs_and_sends_each_blocks_mean_magnitude(numbers):
    read = reread(CODINGS["sign"], numbers)
    assert (np.signbit(read) == np.signbit(numbers)).all()
    for start in range(0, numbers.size, BLOCK):
        mean = np.abs(numbers[start : start + BLOCK].astype(np.float64)).mean()
        sent = np.abs(read[start : start + BLOCK].astype(np.float64))
        assert (sent == sent[0]).all()
        # Rounded up to 8 bits after a float32 sum.
        assert mean * (1 - 1e-4) <= sent[0] <= mean * (1 + 2**-7 + 1e-4) + 2.0**-133


def test_whole_tensors_are_written_in_two_bytes_at_least_but_beside_eden():
    for name in ("fp64", "fp32"):
        assert dense_coding(name) is CODINGS[name]
    for name in ("fp16", "bf16", "int8", "int4", "sign", "qsgd8", "qsgd4", "qsgd2", "lookup2"):
        assert dense_coding(name) is CODINGS["fp16"]
    tensors = {"big": np.zeros(4097), "head": np.zeros(4096), "a.running_var": np.zeros(9000)}
    layout = Layout.of(tensors, {"big", "head"})
    for name in ("eden4", "eden3", "eden2", "eden1"):
        found = [
            (coding, [s.name for s in some]) for coding, some in dense_parts(name, layout.dense)
        ]
        assert found == [
            (CODINGS["int8"], ["a.running_var"]),
            (CODINGS["eden3"], ["head"]),
            (CODINGS[name], ["big"]),
        ]


def test_all_codings_but_fp64_write_float32_numbers():
    assert {name: type_of(coding) for name, coding in CODINGS.items()} == {
        name: np.float64 if name == "fp64" else np.float32 for name in CODINGS
    }


def test_every_coding_has_a_code_of_its_own():
    assert {coding.code: name for name, coding in CODINGS.items()} == {
        **{0: "fp32", 1: "fp16", 2: "bf16", 3: "int8", 4: "int4", 5: "sign", 6: "fp64"},
        **{7: "eden1", 8: "eden2", 9: "eden3", 10: "eden4"},
        **{11: "qsgd8", 12: "qsgd4", 13: "qsgd2", 14: "lookup2"},
    }


# --- bits -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), st.integers(0, 50), st.integers(0, 40))
def test_packed_numbers_are_unpacked_unchanged(data, width, count):
    numbers = np.array(
        data.draw(st.lists(st.integers(0, 2**width - 1), min_size=count, max_size=count)),
        dtype=np.int64,
    )
    packed = memoryview(pack(numbers, width))
    assert len(packed) == packed_size(count, width)
    assert unpack(packed, count, width).tolist() == numbers.tolist()
    assert padding_is_zero(packed, count, width)


def test_packed_bits_never_change():
    numbers = np.array([1, 2, 3, 4, 5, 6, 7, 0, 1])
    assert pack(numbers, 3).hex() == "d1581f01"
    assert pack(numbers, 4).hex() == "2143650701"
    # Eleven bits: the low bytes of all numbers, then a stream of their three high bits.
    assert pack(np.array([0x123, 0x456, 0x7FF]), 11).hex() == "2356ff" + "e101"
