"""Flower's mods for differential privacy beside DarexMod: which order, and what it means."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from apps import BASE
from federations import Federation, rounds
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
)

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy

P = 0.9
BIG = {"weight": np.linspace(-1, 1, 200_000, dtype=np.float32)}


def fed_avg(clients: int = 2) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)


def moving_app(mods: list[Any], step: float) -> ClientApp:
    """An app that moves every weight by the same step."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        name, record = next(iter(message.content.array_records.items()))
        moved = {key: value + np.float32(step) for key, value in to_arrays(record).items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({name: to_record(moved), "metrics": metrics}), reply_to=message)

    return app


def change(
    strategy: Any, app: ClientApp, clients: int, base: dict[str, np.ndarray], count: int = 1
) -> dict[str, np.ndarray]:
    """What some rounds change, by tensor."""
    result = rounds(strategy, Federation(app, clients), count, base)
    return {name: new - base[name] for name, new in to_arrays(result.arrays).items()}


def deviation(mod: LocalDpMod) -> float:
    """Of the noise that it adds (Dwork & Roth, Theorem A.1)."""
    return float(mod.sensitivity * np.sqrt(2 * np.log(1.25 / mod.delta)) / mod.epsilon)


def test_local_noise_after_the_mod_in_the_list_is_added_before_pruning() -> None:
    np.random.seed(0)  # LocalDpMod draws from the global generator
    local = LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=1.0, delta=1e-5)
    step = 1e-6  # Flower's clipping divides by the norm, which must not be 0
    app = moving_app([DarexMod(), local], step)
    strategy = DarexStrategy(fed_avg(1), p=P, values="fp32")
    moved = change(strategy, app, 1, BIG)["weight"].astype(np.float64)
    survivors = moved[moved != 0] - step / (1 - P)
    # What was dropped carries no noise; what survived carries it divided by q = 1-p.
    expected = 200_000 * (1 - P)
    assert abs(survivors.size - expected) <= 5 * np.sqrt(expected * P)
    variance = (deviation(local) / (1 - P)) ** 2
    # The sample variance of n normal numbers has the standard error variance * sqrt(2 / n).
    assert abs(survivors.var() - variance) <= 5 * variance * np.sqrt(2 / survivors.size)
    assert abs(survivors.mean()) <= 5 * np.sqrt(variance / survivors.size)


def test_local_dp_clips_before_pruning_so_survivors_may_be_longer() -> None:
    """The norm that it guarantees is that of the whole update: 1/q comes on top."""
    local = LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=1.0, delta=1e-5)
    app = moving_app([DarexMod(), local], step=1.0)  # norm sqrt(200,000), clipped to 1
    moved = change(DarexStrategy(fed_avg(1), p=P, values="fp32"), app, 1, BIG)["weight"]
    # About 1 / sqrt(q): each of q * n survivors is 1 / sqrt(n) / q long.
    expected = np.sqrt(1 / (1 - P))
    assert np.linalg.norm(moved.astype(np.float64)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("mod", ["local", fixedclipping_mod, adaptiveclipping_mod])
def test_the_order_reversed_is_noticed_by_every_client(
    mod: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The outer mod finds a packet where it expects the model's tensors."""
    if mod == "local":
        mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=1.0, delta=1e-5)
    strategy = DarexStrategy(fed_avg(), p=P)
    grid = Federation(moving_app([mod, DarexMod()], 0.01), 2)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        settings = ConfigRecord({"clipping_norm": 1.0})
        # The mod's error answers the reply, not the message: a server waits until its timeout.
        strategy.start(grid, to_record(BASE), num_rounds=1, timeout=0.5, train_config=settings)
    assert strategy.counted == 0
    assert caplog.text.count("expects the keys in the ArrayRecord of the reply") == 2


def test_a_tensor_named_as_the_packet_does_not_hide_the_reversed_order() -> None:
    local = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=1.0, delta=1e-5)
    strategy = DarexStrategy(fed_avg(), p=P)
    app = moving_app([local, DarexMod()], 0.01)
    rounds(strategy, Federation(app, 2), 1, {"darex": BASE["layer.bias"]})
    assert strategy.counted == 0  # a packet is of a type that Flower's Array cannot open


def test_without_pruning_the_order_reversed_works() -> None:
    local = LocalDpMod(clipping_norm=1e3, sensitivity=0.0, epsilon=1.0, delta=1e-5)
    app = moving_app([local, DarexMod()], 0.25)
    moved = change(DarexStrategy(fed_avg(), method="dense", downlink="dense"), app, 2, BASE)
    assert all(np.allclose(one, 0.25, atol=1e-6) for one in moved.values())


@pytest.mark.parametrize("mod", [fixedclipping_mod, adaptiveclipping_mod])
def test_clipping_mods_need_the_wrappers_key(mod: Any, caplog: pytest.LogCaptureFixture) -> None:
    strategy = DarexStrategy(fed_avg(), p=P)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        rounds(strategy, Federation(moving_app([DarexMod(), mod], 0.01), 2), 1)
    assert strategy.counted == 0
    assert caplog.text.count("requires the key 'clipping_norm' to be present") >= 2


@pytest.mark.parametrize("downlink", ["dense", "update"])
def test_fixed_clipping_on_clients_works_inside_the_mod_and_survivors_are_clipped_again(
    downlink: str,
) -> None:
    norm = 0.5
    private = DifferentialPrivacyClientSideFixedClipping(
        fed_avg(), noise_multiplier=0.0, clipping_norm=norm, num_sampled_clients=2
    )
    strategy = DarexStrategy(private, p=P, values="fp32", mask="round", downlink=downlink)
    app = moving_app([DarexMod(), fixedclipping_mod], 1.0)
    for _ in range(2 if downlink == "update" else 1):
        moved = change(strategy, app, 2, BASE)
        length = np.sqrt(sum(np.vdot(one, one) for one in moved.values()))
        # Pruned and divided by q the clipped update is about norm / sqrt(q) long: the server
        # clips it to the norm that its noise was made for.
        assert strategy.counted == 2 and length == pytest.approx(norm, rel=1e-4)


def test_adaptive_clipping_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="before pruning"):
        DarexStrategy(
            DifferentialPrivacyClientSideAdaptiveClipping(
                fed_avg(), 1.0, num_sampled_clients=2, clipped_count_stddev=2.0
            )
        )
