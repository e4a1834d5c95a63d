"""DarexStrategy(secure=...) with DarexMod alone on the clients: whole rounds."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import federations
import numpy as np
import pytest
from apps import BASE, numpy_app, step_of
from federations import Federation, rounds
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
)
from secure_clients import Lossy
from side_by_side import app as app_of
from side_by_side import plus, reply

from fl_darex.clients import DarexMod
from fl_darex.errors import DeltaError
from fl_darex.flower.records import SEALED_STYPE, packet_of
from fl_darex.rescaling.rules import SERVER_RULES
from fl_darex.secagg.messages import KEYS, MASKED, SHARES, UNMASK
from fl_darex.strategies import DarexStrategy, SecureAggregation

CLIENTS = 5
fedavg = partial(federations.fedavg, clients=CLIENTS)
run = partial(federations.run, clients=CLIENTS)
ASKED = SecureAggregation(range=0.06, max_weight=8, bits=20)
WITH_COUNTER = {**BASE, "steps": np.array([3, 2**53 + 1], dtype=np.int64)}


def darex(
    inner: Any = None, secure: SecureAggregation | None = ASKED, **more: Any
) -> DarexStrategy:
    given = {"p": 0.9, "mask": "round", "values": "fp32", "downlink_values": "fp32"} | more
    return DarexStrategy(inner or fedavg(), secure=secure, **given)


def farthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def tolerance(asked: SecureAggregation, q: float, weights: float, clients: int = CLIENTS) -> float:
    """What rounding may do to an entry: a step for each client, over the weights and q."""
    return clients * asked.range * asked.max_weight / asked.levels / weights / q + 1e-6


@pytest.mark.parametrize("inner", [FedAvg, FedAvgM, FedAdam])
def test_the_model_is_that_of_a_round_in_the_clear_to_the_rounding(inner: Any) -> None:
    options = {"server_learning_rate": 1.0} if inner is FedAvgM else {}
    if inner is FedAdam:
        options = {"tau": 1.0}  # so that a step does not depend on the sign of a difference alone
    clear = run(darex(fedavg(inner, **options), secure=None))
    masked = run(darex(fedavg(inner, **options)))
    assert farthest(clear, BASE) > 100 * tolerance(ASKED, 0.1, 15)
    assert farthest(masked, clear) <= tolerance(ASKED, 0.1, 15)


@pytest.mark.parametrize("method", ["dare", "structured"])
@pytest.mark.parametrize("dense", [(), ("head.weight",)])
def test_dense_tensors_and_counters_are_added_up_as_well(
    method: str, dense: tuple[str, ...]
) -> None:
    more = {"method": method, "dense": dense, "columns": 0.2}
    clear = run(darex(secure=None, **more), base=WITH_COUNTER)
    strategy = darex(**more)
    masked = run(strategy, base=WITH_COUNTER)
    assert strategy.counted == CLIENTS
    assert (masked["steps"] == clear["steps"]).all()
    assert farthest(masked, clear) <= tolerance(ASKED, 0.1, 15)


@pytest.mark.parametrize("stage", [KEYS, SHARES, MASKED, UNMASK])
def test_a_client_that_drops_out_is_left_out_of_the_mean(stage: str) -> None:
    app = Lossy(numpy_app([DarexMod()]), [(3, stage)])
    strategy = darex(p=0.0)
    found = run(strategy, app=app)
    alive = [0, 1, 2, 3, 4] if stage == UNMASK else [0, 1, 2, 4]
    assert strategy.counted == len(alive)
    weights = np.array(alive) + 1
    for name, base in BASE.items():
        steps = sum(w * step_of(i, 1, base.shape) for i, w in zip(alive, weights, strict=True))
        wanted = base + steps / weights.sum()
        assert np.abs(found[name] - wanted).max() <= tolerance(ASKED, 1.0, weights.sum())


def test_rounds_go_on_with_changing_drop_outs_and_a_downlink_of_changes() -> None:
    app = Lossy(numpy_app([DarexMod()]), [(0, MASKED), (0, KEYS)], rounds=[2])
    strategy = darex()
    run(strategy, count=3, app=app)
    assert strategy.counted == CLIENTS
    trained = [entry for entry in strategy.ledger.entries if entry.kind == "train"]
    assert [sum(e.round == r for e in trained) for r in (1, 2, 3)] == [5, 4, 5]


def test_the_result_does_not_depend_on_the_order_of_arrival_or_on_chance() -> None:
    one, other = run(darex(), 2), run(darex(), 2, reverse=True)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_below_the_threshold_the_model_stays_and_the_next_round_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for stage in (KEYS, MASKED, UNMASK):
        app = Lossy(numpy_app([DarexMod()]), [(1, stage), (2, stage)], rounds=[1])
        strategy = darex()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="flwr"):
            after = run(strategy, app=app)
        assert strategy.counted == 0
        # Flower's result holds arrays of rounds that changed the model alone.
        assert not after
        assert "needs 4" in caplog.text or "4 right ones are needed" in caplog.text
        assert farthest(run(strategy, 2, app=app), BASE) > 0.01 and strategy.counted == CLIENTS


def test_a_client_without_the_mod_takes_no_part() -> None:
    with_mod, without = numpy_app([DarexMod()]), numpy_app()

    def app(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        return (without if partition == 2 else with_mod)(message, context)

    strategy = darex()
    run(strategy, app=app)
    assert strategy.counted == CLIENTS - 1


def test_the_server_sees_masked_packets_and_the_metrics_that_it_asked_for() -> None:
    app = Lossy(numpy_app([DarexMod()]))
    asked = SecureAggregation(range=0.06, max_weight=8, metrics=("loss",))
    result = rounds(darex(secure=asked), Federation(app, CLIENTS), 1)
    seen = [reply.content for reply in app.replies if reply.content.array_records]
    assert len(seen) == CLIENTS
    for content in seen:
        assert set(content) == {"arrays", "metrics"} and packet_of(content["arrays"], SEALED_STYPE)
    # The plain mean of 0, 1, 2, 3 and 4: weights stay hidden. Their sum is 15.
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(2.0)


def test_clients_clip_their_own_updates_where_noise_is_added_for_a_norm() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(
        fedavg(), noise_multiplier=0.0, clipping_norm=0.1, num_sampled_clients=CLIENTS
    )
    asked = SecureAggregation(range=1.0, max_weight=8, bits=24)
    found = run(darex(private, asked, p=0.0))
    wanted: dict[str, Any] = {name: base.astype(np.float64) for name, base in BASE.items()}
    for client in range(CLIENTS):
        steps = {name: step_of(client, 1, base.shape) for name, base in BASE.items()}
        norm = np.sqrt(sum(float(np.vdot(step, step)) for step in steps.values()))
        assert norm > 0.1
        wanted = {n: array + steps[n] * 0.1 / norm / CLIENTS for n, array in wanted.items()}
    assert farthest(found, wanted) <= 1e-6  # all count the same


def test_what_is_clipped_to_the_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="flwr"):
        run(darex(secure=SecureAggregation(range=0.01, max_weight=8)))
    # About a third of normal numbers lie more than one standard deviation away.
    assert "% of the clients' numbers were clipped" in caplog.text


def test_short_messages_have_a_line_of_their_own_in_the_ledger() -> None:
    clear, masked = darex(secure=None, p=0.5), darex(secure=ASKED, p=0.5)
    for strategy in (clear, masked):
        run(strategy)
    short = [entry for entry in masked.ledger.entries if entry.kind == "secure"]
    assert len(short) == 3 * CLIENTS and all(e.up_bytes and e.down_bytes for e in short)
    assert all(e.dense_up_bytes == e.dense_down_bytes == 0 and e.round == 1 for e in short)
    plain, hidden = ([e for e in s.ledger.entries if e.kind == "train"] for s in (clear, masked))
    # 24 bits in place of 32, and no weight; the dense counterpart is the same but for that.
    for one, other in zip(plain, hidden, strict=True):
        assert 0.7 < other.up_bytes / one.up_bytes < 0.85
        assert abs(one.dense_up_bytes - other.dense_up_bytes) < 100


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": "client"}, "use mask='round' and method 'dare' or 'structured'"),
        ({"method": "dense"}, "got mask 'round' and method 'dense'"),
        ({"q": "q-e"}, "all clients need the same q"),
        ({"inner": FedMedian()}, "FedMedian compares clients"),
    ],
)
def test_what_needs_single_updates_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        darex(**options)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_the_server_can_search_q_on_the_sum(rule: Any) -> None:
    seen: list[Any] = []

    def validate(arrays: Any) -> float:
        seen.append(arrays)
        return float(np.abs(arrays["layer.bias"]).sum())

    strategy = darex(q=rule, validate=validate)
    run(strategy)
    assert seen and strategy.counted == CLIENTS and 0.1 <= strategy.q <= 1.0


@pytest.mark.parametrize(
    ("mods", "change", "words"),
    [
        ({"mask_first": True}, lambda arrays: arrays, "this round's mask drops"),
        ({}, lambda arrays: {**arrays, "more": np.ones(2, np.float32)}, "'more'"),
    ],
)
def test_an_app_that_can_never_be_summed_ends_the_run_in_round_1_with_what_to_do(
    mods: dict[str, Any], change: Any, words: str
) -> None:
    def answer(arrays: Any, *_: Any) -> Any:
        return reply(change(plus(arrays, 0.01)))

    with pytest.raises(DeltaError, match=f"can be used, in this round or any: .*{words}"):
        run(darex(**mods), 2, app=app_of(answer))


def test_an_app_that_could_be_summed_before_costs_the_round_alone() -> None:
    def answer(arrays: Any, partition: int, round_: int) -> Any:
        more = {"more": np.ones(2, np.float32)} if round_ > 1 else {}
        return reply(plus(arrays, 0.01) | more)

    found = run(darex(p=0.0), 3, app=app_of(answer))
    assert farthest(found, {name: array + 0.01 for name, array in BASE.items()}) < 1e-4


def test_too_few_clients_for_secure_aggregation_leave_the_model() -> None:
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy = darex(inner)
    rounds(strategy, Federation(numpy_app([DarexMod()]), 2), 1)
    assert strategy.counted == 0


def test_a_ring_that_cannot_hold_the_sum_ends_the_run_with_the_numbers() -> None:
    asked = SecureAggregation(range=0.06, max_weight=8, bits=16, ring=16)
    with pytest.raises(ValueError, match="5 clients with 16 bits each needs a ring of 19 bits"):
        run(darex(secure=asked))


def test_a_client_may_insist_on_secure_aggregation() -> None:
    """It then trains for no server that does not ask for it, with packets or without."""
    app = numpy_app([DarexMod(secure_only=True)])
    for options in ({}, {"method": "dense", "mask": "client"}):
        with pytest.raises(DeltaError, match=r"in this round or any.*secure_only=True"):
            run(darex(secure=None, **options), app=app)
    strategy = darex()
    run(strategy, app=app)
    assert strategy.counted == CLIENTS


class Tampering(Federation):
    """A server that asks for a masked update in a way that would leave it in the clear."""

    def __init__(self, app: Any, change: Any) -> None:
        super().__init__(app, CLIENTS)
        self._change = change

    def push_messages(self, messages: Any) -> Any:
        changed = list(messages)
        for message in changed:
            for config in message.content.config_records.values():
                if "darex" in config:
                    self._change(config)
        return super().push_messages(changed)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda config: config.pop("darex"), "there is nothing to mask"),
        (
            lambda config: config.update(darex=config["darex"].replace('"dare"', '"dense"')),
            "method 'dense' has no packet to mask",
        ),
    ],
)
def test_a_client_that_is_asked_to_mask_never_answers_in_the_clear(
    change: Any, match: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Lossy(numpy_app([DarexMod()]))
    strategy = darex(downlink="dense")
    with caplog.at_level(logging.WARNING, logger="flwr"):
        rounds(strategy, Tampering(app, change), 1)
    assert strategy.counted == 0 and caplog.text.count(match) == CLIENTS
    assert not any(reply.content.array_records for reply in app.replies)


def test_a_client_that_lost_its_cache_masks_what_it_trained_on_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))

    class Forgetful(Lossy):
        def __call__(self, message: Message, context: Context) -> Message:
            config = next(iter(message.content.config_records.values()), ConfigRecord())
            if config.get("server-round") == 2 and "darex" in config and not self.rounds:
                self.app, self.rounds = numpy_app([DarexMod()]), {2}  # a new process
                for path in tmp_path.rglob("*.model"):
                    path.unlink()
            return super().__call__(message, context)

    strategy = darex()
    forgotten = run(strategy, 2, app=Forgetful(numpy_app([DarexMod()])))
    assert strategy.counted == CLIENTS
    lacking = [entry for entry in strategy.ledger.entries if entry.kind == "lacking"]
    assert lacking and all(entry.round == 2 for entry in lacking)
    kept = run(darex(), 2)
    assert all(forgotten[name].tobytes() == kept[name].tobytes() for name in kept)
