"""SparseLoCo and its two bits, against transcriptions of the paper and its quantiser in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from papers import SHAPES, Client, assert_near, change

from fl_darex.compression import Uplink
from fl_darex.errors import PacketError
from fl_darex.positions import ListedMask
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.codings.coding import noise_of
from fl_darex.wire.codings.lookup import BLOCK

CODING = CODINGS["lookup2"]


def chunked(numbers: np.ndarray, chunk: int, share: float) -> np.ndarray:
    """TOP-k of each chunk of a flattened tensor; all else is 0."""
    flat, kept = numbers.reshape(-1), np.zeros(numbers.size)
    for start in range(0, flat.size, chunk):
        part = flat[start : start + chunk]
        count = max(1, int(share * part.size + 0.5))
        where = start + np.argsort(-np.abs(part), kind="stable")[:count]
        kept[where] = flat[where]
    return kept.reshape(numbers.shape)


@pytest.mark.parametrize(("decay", "chunk"), [(0.95, 16), (0.5, 7), (0.0, 1000), (1.0, 16)])
def test_rounds_are_those_of_the_paper(decay: float, chunk: int) -> None:
    client = Client("sparseloco", 0.8, options={"decay": decay, "chunk": chunk})
    error = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for t in range(1, 13):
        now = change(0, t)
        accumulated = {name: decay * error[name] + now[name] for name in now}
        expected = {k: chunked(v, chunk, 0.2) for k, v in accumulated.items()}
        found = client.sent(now, t)
        assert_near(found, expected, 1e-11)
        error = {name: accumulated[name] - expected[name] for name in now}


def quantised(numbers: np.ndarray) -> np.ndarray:
    """Four bins of 6 / 4 standard deviations around the mean; each is read as its mean."""
    shift = numbers.mean()
    centred = numbers - shift
    scale = 6 * np.sqrt((centred**2).sum() / (numbers.size - 1)) / 4
    bins = np.clip(np.round(centred / scale + 2), 0, 3)
    return shift + np.sum([(bins == b) * centred[bins == b].mean() for b in set(bins)], axis=0)


def reread(numbers: np.ndarray) -> np.ndarray:
    data = memoryview(CODING.write(numbers, 0, noise_of(1, 1, 0)))
    assert len(data) == CODING.size(numbers.size)
    bound = CODING.largest(data, numbers.size, 0)
    found = CODING.read(data, numbers.size, 0, 0, numbers.size)
    assert np.abs(found).max(initial=0) <= bound
    return found


@pytest.mark.parametrize("kind", ["normal", "largest", "skewed"])
def test_two_bits_choose_the_mean_of_a_bin(kind: str) -> None:
    rng = np.random.default_rng(5)
    numbers = rng.standard_normal(3 * BLOCK + 100)
    if kind == "largest":  # what top-k leaves: nothing is near 0
        numbers = np.sign(numbers) * (2.5 + rng.exponential(0.3, numbers.size))
    if kind == "skewed":
        numbers = rng.exponential(1.0, numbers.size)
    numbers = numbers.astype(np.float32)
    found = reread(numbers)
    for start in range(0, numbers.size, BLOCK):
        block = numbers[start : start + BLOCK].astype(np.float64)
        read = found[start : start + BLOCK]
        assert len(set(read.tolist())) <= 4
        # A number of a table has eight bits.
        np.testing.assert_allclose(read, quantised(block), rtol=2.0**-8, atol=1e-6)


def test_a_constant_block_one_number_and_none_are_exact() -> None:
    for numbers in (np.full(10, -0.75), np.array([1.5]), np.array([]), np.zeros(5)):
        assert (reread(numbers.astype(np.float32)) == numbers).all()


def test_a_small_tensor_sends_one_entry_and_a_server_takes_no_more_than_may_come() -> None:
    client = Client("sparseloco", 0.99, options={"chunk": 50})
    for t in (1, 2):
        found = client.sent(change(0, t), t)
        # 72, 11, 60 and 40 entries are 2, 1, 2 and 1 chunks.
        counts = {name: np.count_nonzero(array) for name, array in found.items()}
        assert counts == {"a.weight": 2, "b.bias": 1, "c.weight": 2, "d": 1}
    layout = client.uplink.layout(change(0, 1))
    mask = client.uplink.how.mask(client.terms(1))
    assert isinstance(mask, ListedMask) and 6 <= mask.bounds(layout)[1] < 30
    greedy = Client("magnitude", 0.5)
    greedy.sent(change(0, 1), 1)
    with pytest.raises(PacketError, match="survivors, the mask 0 to"):
        client.uplink.how.open(greedy.packet, layout, client.terms(1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 1.1}, r"^decay = 1\.1 is not allowed; it must be a number from 0 to 1"),
        ({"chunk": 0}, r"^chunk = 0 is not allowed; it must be a whole number from 1"),
        ({"chunk": 8.0}, r"^chunk = 8\.0 is not allowed"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Uplink.of("sparseloco", 0.98, options=options)
