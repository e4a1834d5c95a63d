"""Deep gradient compression against a transcription of Lin et al. in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from apps import BASE, step_of
from federations import CLIENTS, fedavg, run
from papers import SHAPES, Changes, Client, assert_near, change

from fl_darex.compression import Uplink
from fl_darex.errors import PacketError
from fl_darex.masks import ONE
from fl_darex.strategies import DarexStrategy


def top(numbers: np.ndarray, share: float) -> np.ndarray:
    """Where the largest magnitudes of a tensor are."""
    count = int(share * numbers.size + 0.5)
    mask = np.zeros(numbers.size, dtype=bool)
    mask[np.argsort(-np.abs(numbers.reshape(-1)), kind="stable")[:count]] = True
    return mask.reshape(numbers.shape)


def compressed(changes: list[Changes], shares: list[float], m: float) -> list[Changes]:
    """Algorithm 4 of the paper for vanilla momentum, without clipping; changes are gradients."""
    u = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    said = []
    for gradient, share in zip(changes, shares, strict=True):
        sparse = {}
        for name, g in gradient.items():
            u[name] = m * u[name] + g
            v[name] = v[name] + u[name]
            mask = top(v[name], share)
            sparse[name] = v[name] * mask
            v[name], u[name] = v[name] * ~mask, u[name] * ~mask
        said.append(sparse)
    return said


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("warmup", [0, 4])
def test_rounds_are_those_of_the_paper(momentum: float, warmup: int) -> None:
    options = {"momentum": momentum, "warmup_rounds": warmup}
    client, changes = Client("dgc", 0.9, options=options), [change(0, t) for t in range(1, 13)]
    shares = [0.1 ** min(1.0, t / (warmup + 1)) for t in range(1, 13)]
    for t, expected in enumerate(compressed(changes, shares, momentum), start=1):
        assert_near(client.sent(changes[t - 1], t), expected)


def test_the_warm_up_is_the_papers_and_a_server_takes_no_more_than_it_allows() -> None:
    client = Client("dgc", 0.999)
    shares = [client.uplink.how.mask(client.terms(t)).share / ONE for t in range(1, 7)]
    np.testing.assert_allclose(shares[:5], [0.25, 0.0625, 0.015625, 0.004, 0.001], rtol=0.02)
    assert shares[4] == shares[5] == client.uplink.keep / ONE
    now = {"w": np.random.default_rng(0).standard_normal((1, 4000))}
    assert np.count_nonzero(client.sent(now, 1)["w"]) == pytest.approx(1000, rel=0.01)
    early = client.packet
    layout = client.uplink.layout(now)
    with pytest.raises(PacketError, match=r"expected 5|survivors, the mask 0 to"):
        client.uplink.how.open(early, layout, client.terms(5))


def test_without_momentum_and_warm_up_it_is_top_k() -> None:
    plain = Client("dgc", 0.9, options={"momentum": 0.0, "warmup_rounds": 0, "scope": "global"})
    other = Client("topk", 0.9, options={"scope": "global"})
    for t in range(1, 6):
        assert_near(plain.sent(change(2, t), t), other.sent(change(2, t), t))


def test_a_tensor_that_is_sent_whole_has_no_momentum() -> None:
    client = Client("dgc", 0.9, dense=("b.bias",))
    for t in range(1, 4):
        assert_near({"b": client.sent(change(0, t), t)["b.bias"]}, {"b": change(0, t)["b.bias"]})
    assert {name for name in client.state if "b.bias" in name} == {"left of b.bias"}
    assert not client.state["left of b.bias"].any()


def test_what_rounding_takes_is_accumulated_but_momentum_is_forgotten_there() -> None:
    client = Client("dgc", 0.5, values="int4", options={"warmup_rounds": 0})
    now = {name: array.astype(np.float32) for name, array in change(0, 1).items()}
    sent = client.sent(now, 1)
    for name, array in now.items():
        left = client.state["left of " + name].reshape(array.shape)
        np.testing.assert_allclose(sent[name] + left, array, atol=1e-6)
        there = client.state["momentum of " + name].reshape(array.shape)
        assert np.count_nonzero(there == 0) == int(0.5 * array.size + 0.5)
        assert (there[there != 0] == array[there != 0]).all()


def test_in_a_federation_nothing_but_the_mean_of_what_was_sent_moves_the_model() -> None:
    made = DarexStrategy(
        *(fedavg(), 0.9), method="dgc", values="fp32", dense_below=0, seed=5, warmup_rounds=2
    )
    found = run(made, 3)
    assert made.counted == CLIENTS
    total = {name: base.astype(np.float64) for name, base in BASE.items()}
    clients = [
        Client("dgc", 0.9, slot, values="fp32", options={"warmup_rounds": 2})
        for slot in range(CLIENTS)
    ]
    for t in range(1, 4):
        for slot, client in enumerate(clients):
            now = {name: step_of(slot, t, base.shape) for name, base in BASE.items()}
            for name, moved in client.sent(now, t).items():
                total[name] = total[name] + (slot + 1) / 10 * moved
    for name, expected in total.items():
        # A change is a difference of float32 numbers there, so that equals may be told apart.
        gap = np.abs(found[name] - expected)
        assert (gap > 1e-5).sum() <= 2, name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 1.0}, r"^momentum = 1\.0 is not allowed; it must be a number from 0 below 1"),
        ({"warmup_rounds": -1}, r"^warmup_rounds = -1 is not allowed"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Uplink.of("dgc", 0.99, options=options)
