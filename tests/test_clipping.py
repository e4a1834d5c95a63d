"""Norms of updates as the server adds them, and differential privacy that relies on them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import CLIENTS, Federation, fedavg, listening, rounds
from flwr.app import Message
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.clients import DarexMod
from fl_darex.delta import Delta
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.pruning import dare
from fl_darex.strategies import DarexStrategy

MIXED = BASE | {"steps": np.arange(5, dtype=np.int64)}


class Adversary:
    """Knows the seed, so it knows the mask, and puts all that it is allowed on the survivors."""

    def __init__(self, norm: float, p: float, seed: int = 0, partition: int | None = 1) -> None:
        self.norm, self.p, self.seed, self.partition = norm, p, seed, partition

    def __call__(self, message: Message, context: Any, call_next: Any) -> Message:
        if message.metadata.message_type != "train":
            return call_next(message, context)
        base = to_arrays(message.content["arrays"])
        reply = call_next(message, context)
        partition = context.node_config["partition-id"]
        if self.partition is None or partition == self.partition:
            tuned = {k: v + 1 for k, v in base.items()}
            where = dare(Delta(tuned, base), self.p, seed=self.seed, round_=1, slot=partition)
            arrays = {k: v.copy() for k, v in base.items()}
            each = self.norm / np.sqrt(where.count)
            for name, positions in where.positions.items():
                arrays[name].reshape(-1)[positions] += np.float32(each)
            reply.content["arrays"] = to_record(arrays)
        return reply


def moved(strategy: Any, mods: list[Any], arrays: Any = BASE) -> float:
    found = to_arrays(rounds(strategy, Federation(numpy_app(mods), CLIENTS), 1, arrays).arrays)
    steps = [np.ravel(found[k].astype(np.float64) - v) for k, v in arrays.items() if v.dtype != int]
    return float(np.linalg.norm(np.concatenate(steps)))


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8"])
def test_a_client_that_clips_before_pruning_is_a_hundred_times_too_long_without_clip(
    values: str,
) -> None:
    mods = [DarexMod(), Adversary(1.0, 0.99, partition=None)]
    # All clients clip to 1 themselves; survivors are then divided by 0.01. Masks hardly overlap, so
    # the mean of four is half as long as one.
    assert 40 < moved(DarexStrategy(fedavg(), 0.99, values=values), mods) < 70
    assert moved(DarexStrategy(fedavg(), 0.99, values=values, clip=1.0), mods) < 0.8


@settings(max_examples=25, deadline=None)
@given(
    clip=st.floats(1e-3, 1e3),
    size=st.floats(1e-3, 1e6),
    p=st.sampled_from([0.0, 0.5, 0.99]),
    mask=st.sampled_from(["client", "round"]),
)
def test_no_update_is_longer_than_the_clip(clip: float, size: float, p: float, mask: str) -> None:
    def enlarge(message: Message, context: Any, call_next: Any) -> Message:
        if message.metadata.message_type != "train":
            return call_next(message, context)
        base, reply = to_arrays(message.content["arrays"]), call_next(message, context)
        tuned = to_arrays(reply.content["arrays"])
        reply.content["arrays"] = to_record(
            {k: base[k] + (tuned[k] - base[k]) * np.float32(size) for k in base}
        )
        return reply

    strategy = DarexStrategy(
        fedavg(), p, mask=mask, clip=clip, downlink="dense", values="fp32", dense=["head.weight"]
    )
    # What is added is rounded to the model's float32, entry by entry.
    rounding = 2.0**-22 * np.sqrt(sum(v.size for v in BASE.values()))
    assert moved(strategy, [DarexMod(), enlarge]) <= clip * (1 + 1e-5) + rounding


def test_a_short_update_is_left_alone_bit_for_bit() -> None:
    def run(**options: Any) -> bytes:
        strategy = DarexStrategy(fedavg(), 0.9, **options)
        grid = Federation(numpy_app([DarexMod()]), CLIENTS)
        found = to_arrays(rounds(strategy, grid, 2).arrays)
        return b"".join(array.tobytes() for array in found.values())

    assert run() == run(clip=1e6)


def test_a_dense_reply_is_clipped_like_a_packet_and_counters_do_not_count() -> None:
    def far(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type != "train":
            return reply
        arrays = to_arrays(reply.content["arrays"])
        reply.content["arrays"] = to_record(
            {k: v + np.asarray(1000, v.dtype) for k, v in arrays.items()}
        )
        return reply

    strategy = DarexStrategy(fedavg(), 0.9, clip=2.0)
    grid = Federation(numpy_app([far]), CLIENTS)
    found = to_arrays(rounds(strategy, grid, 1, MIXED).arrays)
    steps = np.concatenate([np.ravel(found[k] - v) for k, v in BASE.items()])
    assert np.linalg.norm(steps) == pytest.approx(2.0, abs=1e-3)
    assert (found["steps"] >= MIXED["steps"] + 999).all()


def test_one_q_for_each_tensor_is_clipped_too() -> None:
    mods = [
        DarexMod(search=lambda message, context, s, rule: np.full(3, 0.01, np.float32)),
        Adversary(1.0, 0.99, partition=None),
    ]
    assert moved(DarexStrategy(fedavg(), 0.99, q="layer-q-e", dense_below=0), mods) > 10
    assert moved(DarexStrategy(fedavg(), 0.99, q="layer-q-e", clip=1.0, dense_below=0), mods) < 1.0


def test_the_log_says_whose_update_was_clipped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    with listening(caplog):
        moved(DarexStrategy(fedavg(), 0.99, clip=5.0), [DarexMod(), Adversary(1.0, 0.99)])
    assert "client 1: an update of norm 100 is clipped to 5" in caplog.text


# --- differential privacy ---------------------------------------------------------------------


def private(norm: float, noise: float, **options: Any) -> Any:
    return flower.DifferentialPrivacyServerSideFixedClipping(
        fedavg(), noise, norm, CLIENTS, **options
    )


def test_under_differential_privacy_no_client_moves_the_model_further_than_the_norm() -> None:
    for partition in (1, None):  # one liar among four, or all of them
        mods = [DarexMod(), Adversary(1.0, 0.99, partition=partition)]
        assert moved(DarexStrategy(fedavg(), 0.99), mods) > 15
        assert moved(DarexStrategy(private(1.0, 0.0), 0.99), mods) <= 1.0 + 1e-4


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_under_differential_privacy_a_clip_that_is_no_norm_is_refused_all_the_same(clip) -> None:
    with pytest.raises(ValueError, match="clip is the largest norm of an update"):
        DarexStrategy(private(1.0, 0.0), clip=clip)


def test_under_differential_privacy_all_clients_count_the_same() -> None:
    # A single client of four may move the mean by a quarter of the norm, whatever its weight.
    def heavy(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type != "train":
            return reply
        one = context.node_config["partition-id"] == 1
        reply.content["metrics"]["num-examples"] = 10**9 if one else 1
        if not one:  # the others do not move
            reply.content["arrays"] = to_record(BASE)
        return reply

    mods = [DarexMod(), heavy, Adversary(1.0, 0.99)]
    assert moved(DarexStrategy(private(1.0, 0.0), 0.99), mods) == pytest.approx(0.25, rel=1e-3)
    assert moved(DarexStrategy(fedavg(), 0.99), mods) == pytest.approx(100, rel=1e-3)


def test_the_noise_is_that_of_flowers_wrapper_and_spares_counters() -> None:
    np.random.seed(0)
    strategy = DarexStrategy(private(1.0, 2.0), 0.99)
    still = [DarexMod(), Adversary(1e-6, 0.99, partition=None)]
    grid = Federation(numpy_app(still), CLIENTS)
    found = to_arrays(rounds(strategy, grid, 1, BASE).arrays)
    noise = np.concatenate([np.ravel(found[k].astype(np.float64) - v) for k, v in BASE.items()])
    sigma = 2.0 * 1.0 / CLIENTS
    assert noise.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * noise.size))

    strategy = DarexStrategy(private(1.0, 2.0), 0.99)
    grid = Federation(numpy_app([DarexMod()]), CLIENTS)
    mixed = to_arrays(rounds(strategy, grid, 1, MIXED).arrays)
    assert mixed["steps"].dtype == MIXED["steps"].dtype
    assert np.abs(mixed["steps"] - MIXED["steps"]).max() <= 1


class Accountant:
    """Counts releases; Flower's own needs a package for its arithmetic."""

    def __init__(self, config: Any) -> None:
        self.config, self.releases = config, 0

    def compose(self, event: Any, count: int = 1) -> None:
        self.releases += count

    def get_privacy_spent(self, delta: float | None = None) -> Any:
        return SimpleNamespace(epsilon=1.0, delta=1e-5, num_releases=self.releases)


def test_flowers_accounting_accepts_every_round() -> None:
    # It is strict: as many replies as were sampled, and equal weights.
    from flwr.supercore import privacy_accounting as accounting

    config = accounting.PrivacyConfig(
        population_size=CLIENTS,
        target_delta=1e-5,
        neighboring_relation=next(iter(accounting.NeighboringRelation)),
        sampling_method=accounting.SamplingMethod.NO_AMPLIFICATION,
    )
    strategy = private(1.0, 2.0, accountant=Accountant(config))
    grid = Federation(numpy_app([DarexMod()]), CLIENTS)
    rounds(DarexStrategy(strategy, 0.99), grid, 3)
    assert strategy.privacy_spent().num_releases == 3


def test_differential_privacy_around_darex_is_refused() -> None:
    wrong = flower.DifferentialPrivacyServerSideFixedClipping(
        DarexStrategy(fedavg(), 0.99), 1.0, 1.0, CLIENTS
    )
    with pytest.raises(RuntimeError, match="has to be the outermost"):
        rounds(wrong, Federation(numpy_app([DarexMod()]), CLIENTS), 1)


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (
            lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(fedavg(), 0.1, 100),
            "adapts its norm",
        ),
        (
            lambda: flower.DifferentialPrivacyServerSideFixedClipping(
                flower.FedMedian(), 1.0, 1.0, CLIENTS
            ),
            "adds noise to an average",
        ),
    ],
)
def test_privacy_that_darex_cannot_keep_is_refused(strategy: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DarexStrategy(strategy(), 0.99, mask="round")
