"""Sparse ternary compression, up and down, against a transcription of Sattler et al. in float64."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from federations import CLIENTS, fedavg, run
from papers import SHAPES, Client, assert_near, change

from fl_darex.compression import POLICIES, StepTerms, Uplink
from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Delta, Layout
from fl_darex.masks import ONE, keep_threshold
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.reader import read_packet

SHARE = 0.25


def travels(mean: float) -> float:
    """A mean as 'sign' carries it: the next float32, cut to its upper half and rounded up."""
    (bits,) = struct.unpack("<I", struct.pack("<f", np.nextafter(np.float32(mean), np.float32(9))))
    return float(struct.unpack("<f", struct.pack("<I", -(-bits // 65536) * 65536))[0])


def ternary(flat: np.ndarray, count: int, block: int) -> np.ndarray:
    """Algorithm 1: mu times the sign of the k largest; a mu for each ``block`` of these."""
    where = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count])
    found = np.zeros_like(flat)
    for start in range(0, count, block):
        some = where[start : start + block]
        found[some] = travels(np.abs(flat[some]).mean()) * np.sign(flat[some])
    return found


def vector(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])


def test_the_way_up_is_the_papers_algorithm_with_its_memory() -> None:
    client = Client("stc", 1 - SHARE, values="sign")
    residual = np.zeros(sum(int(np.prod(shape)) for shape in SHAPES.values()))
    for t in range(1, 13):
        now = {name: array.astype(np.float32) for name, array in change(0, t).items()}
        summed = residual + vector(now).astype(np.float64)
        expected = ternary(summed, round(SHARE * summed.size), summed.size)
        np.testing.assert_allclose(vector(client.sent(now, t)), expected, rtol=0, atol=1e-5)
        assert len(set(np.abs(expected))) == 2  # one magnitude, and 0
        residual = summed - expected
        left = {name: client.state[name].reshape(shape) for name, shape in SHAPES.items()}
        np.testing.assert_allclose(vector(left), residual, rtol=0, atol=1e-5)


def test_many_survivors_share_one_magnitude_across_blocks_and_tensors() -> None:
    client = Client("stc", 0.5, values="sign", slot=1)
    rng = np.random.default_rng(0)
    now = {"a": rng.standard_normal((40, 30)), "b": 100 * rng.standard_normal(3000)}
    sent = vector(client.sent({k: v.astype(np.float32) for k, v in now.items()}, 1))
    assert len(set(np.abs(sent[sent != 0]))) == 1 and np.count_nonzero(sent) == 2100


def test_the_way_down_is_the_same_with_a_magnitude_for_256_numbers() -> None:
    rng, kept = np.random.default_rng(1), {}
    held = {"a": np.zeros((30, 40), np.float32), "b": np.zeros(700, np.float32)}
    layout, residual = Layout.of(held), np.zeros(1900)
    for t in range(1, 8):
        step = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in held.items()}
        after = {name: held[name] + step[name] for name in held}
        moved = {name: (after[name] - held[name]).astype(np.float64) for name in held}
        terms = StepTerms(
            seed=1, round=t, version=bytes(8), keep=ONE // 4, values="sign", masks=None
        )
        delta = Delta(after, held, layout=layout)
        packet, kept = POLICIES["server"].pack(delta, terms, kept)
        assert packet is not None
        summed = residual + vector(moved)
        expected = ternary(summed, 475, 256)
        said = SparseUpdate.of_packet(read_packet(packet, layout)).values(held)
        found = {name: said[name].astype(np.float64) - held[name] for name in held}
        np.testing.assert_allclose(vector(found), expected, rtol=0, atol=1e-5)
        residual, held = summed - expected, said


def test_both_ways_take_about_a_bit_and_a_position_for_each_entry() -> None:
    made = DarexStrategy(fedavg(), 0.9, method="stc", values="sign", downlink="server", seed=1)
    run(made, 3)
    assert made.counted == CLIENTS
    packet = Client("stc", 0.9, values="sign")
    now = {"w": np.random.default_rng(3).standard_normal((300, 200)).astype(np.float32)}
    packet.sent(now, 1)
    # 6,000 of 60,000: the entropy of a position at p = .9 is 4.69 bits, Rice takes a little more.
    assert 5.69 < len(packet.packet[96:]) * 8 / 6000 < 1 + 1 / 16 + 4.69 * 1.03


@pytest.mark.parametrize("values", ["fp16", "int8", "eden1"])
def test_more_than_a_bit_for_a_sign_is_refused(values: str) -> None:
    with pytest.raises(ValueError, match=r"^values = .* set values = 'sign'"):
        Uplink.of("stc", 0.9, values=values)


def test_a_model_of_zeros_is_sent_as_nothing() -> None:
    client = Client("stc", 0.9, values="sign")
    nothing = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    assert_near(client.sent(nothing, 1), nothing, 0)
    assert client.uplink.keep == keep_threshold(0.9)
