"""The sum over many clients: what each says, added in order, whatever the stretches are."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden import seal, take_apart

from fl_darex import compiled
from fl_darex.compression import SparseUpdate
from fl_darex.compression import sparse_sum as block_sum
from fl_darex.compression.sparse_sum import Share, add_sparse
from fl_darex.compression.weighted_sum import Part
from fl_darex.delta import Delta, Layout
from fl_darex.masks import BLOCK, ONE
from fl_darex.positions import ListedMask, SeededMask
from fl_darex.pruning import dare
from fl_darex.pruning.gather import gather
from fl_darex.survivors import Survivors
from fl_darex.wire import encode
from fl_darex.wire.reader import read_packet

SHAPES = {"a.bias": (50,), "b.weight": (700, 400), "empty": (0, 3), "head": (10, 50)}
LAYOUT = Layout.of({n: np.zeros(s, np.float32) for n, s in SHAPES.items()}, dense=["head"])


def weighted_sum(layout: Layout, shares: list[Share]) -> np.ndarray:
    total = np.zeros(sum(spec.numel for spec in layout.pruned), np.float32)
    assert add_sparse(total, layout, shares) == []
    return total


def delta(client: int) -> Delta:
    rng = np.random.default_rng(client)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    return Delta(tensors, dense=["head"])


def survivors(client: int, **options: Any) -> Survivors:
    return dare(delta(client), **{"p": 0.9, "seed": 1, "slot": client} | options)


def apart(client: int) -> Survivors:
    mask = SeededMask(1, 0, client, ONE // 4, disjoint=True)
    return gather(delta(client), mask, 0.25)


def listed(client: int) -> Survivors:
    where = {n: np.arange(client, int(np.prod(s)), 11) for n, s in SHAPES.items() if n != "head"}
    return gather(delta(client), ListedMask(where, slot=client), 0.7)


def packed(update: Survivors, values: str = "fp32") -> Any:
    return read_packet(encode(update, values), LAYOUT)


def share(packet: Any, weight: float) -> Share:
    return Share(Part(SparseUpdate.of_packet(packet), weight), weight)


def flat(full: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([full[spec.name].reshape(-1) for spec in LAYOUT.pruned])


CASES = {
    "independent masks": [survivors(i) for i in range(4)],
    "one mask": [survivors(i, slot=-1) for i in range(4)],
    "both": [survivors(0), survivors(1, slot=-1), survivors(2), survivors(3, slot=-1)],
    "masks side by side": [apart(i) for i in range(4)],
    "exact counts": [survivors(i, exact=True) for i in range(3)],
    "nothing dropped": [survivors(i, p=0.0) for i in range(3)],
    "listed": [listed(i) for i in range(3)],
    "one q a tensor": [
        replace(survivors(i), q=np.array([0.1, 0.3, 1.0], np.float32)) for i in range(3)
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("span", [1, BLOCK, 1 << 21])
def test_the_sum_is_that_of_the_rescaled_updates(case, span, monkeypatch):
    monkeypatch.setattr(block_sum, "_SPAN", span)
    updates = CASES[case]
    weights = np.linspace(0.1, 0.5, len(updates))
    found = weighted_sum(
        LAYOUT, [share(packed(u), w) for u, w in zip(updates, weights, strict=True)]
    )
    expected = sum(
        w * flat(u.rescaled()).astype(np.float64) for u, w in zip(updates, weights, strict=True)
    )
    # Each client: a scale and a product, then an addition, all in float32.
    size = sum(np.abs(w * flat(u.rescaled())) for u, w in zip(updates, weights, strict=True)).max()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= (2 + len(updates)) * np.finfo(np.float32).eps * size


@pytest.mark.parametrize("case", CASES)
def test_the_stretches_do_not_change_a_bit(case, monkeypatch):
    found = []
    for span in (1, BLOCK, 1 << 21):
        monkeypatch.setattr(block_sum, "_SPAN", span)
        shares = [share(packed(u), 0.25) for u in CASES[case]]
        found.append(weighted_sum(LAYOUT, shares).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8", "int4", "sign", "eden1", "eden3"])
def test_every_coding_is_added_as_it_is_decoded(values, monkeypatch):
    monkeypatch.setattr(block_sum, "_SPAN", 1)
    packets = [packed(survivors(i), values) for i in range(3)]
    found = weighted_sum(LAYOUT, [share(packet, 0.5) for packet in packets])
    expected = sum(0.5 * flat(p.survivors().rescaled()).astype(np.float64) for p in packets)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_packets_sum_up_to_zeros():
    assert not weighted_sum(LAYOUT, []).any()


@pytest.mark.parametrize("slot", [0, -1])
@pytest.mark.parametrize("change", [1, -1, 50])
def test_a_packet_with_another_number_of_survivors_is_found_out(slot, change):
    updates = [survivors(i, slot=i if slot == 0 else slot) for i in range(3)]
    packets = [encode(update, "fp32") for update in updates]
    fields, body = take_apart(packets[1])
    count = fields["survivors"] + change
    body = body[: 4 * count] if change < 0 else bytes(4 * change) + body
    if change < 0:  # the dense tensor's numbers stay
        body = body[: 4 * count] + take_apart(packets[1])[1][-2000:]
    packets[1] = seal(fields | {"survivors": count}, body)
    shares = [share(read_packet(packet, LAYOUT), 0.3) for packet in packets]
    total = np.zeros(sum(spec.numel for spec in LAYOUT.pruned), np.float32)
    assert add_sparse(total, LAYOUT, shares) == [shares[1]]


def test_memory_does_not_grow_with_the_number_of_clients():
    compiled.load(1.0)  # where Numba is installed: its own memory is not meant
    layout = Layout.of({"w": np.broadcast_to(np.float32(0), (16, 1 << 20))})
    tensor = np.random.default_rng(0).normal(size=(16, 1 << 20)).astype(np.float32)

    def peak(clients: int) -> int:
        updates = [dare({"w": tensor}, 0.99, seed=1, slot=i) for i in range(clients)]
        shares = [share(read_packet(encode(u), layout), 1 / clients) for u in updates]
        del updates
        tracemalloc.start()
        weighted_sum(layout, shares)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # The accumulator is one model; the rest is what a batch of clients in one stretch needs, which
    # a model of any size and any number of clients have alike: some megabytes.
    few, many, more = peak(2), peak(30), peak(60)
    assert few <= tensor.nbytes + 3e6
    assert many <= tensor.nbytes + 16e6
    # A compiled loop holds the next 2**14 numbers of each client, far less than their packets do.
    assert more <= many + (1e6 if compiled.loaded() is None else 30 * 40e3)
