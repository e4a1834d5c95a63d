"""Replies that no honest client sends: each costs its sender's reply, and nobody else anything."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federations import Federation, fedavg, listening, rounds
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from side_by_side import app, plus, reply

from fl_darex.flower.model_note import DIGESTS_KEY, HELD_KEY, MISSING
from fl_darex.flower.records import packet_of, packet_record, to_arrays, to_record
from fl_darex.flower.roster import PARTITION_KEY
from fl_darex.strategies import DarexStrategy

BASE = {"w": np.ones(4000, np.float32), "b": np.zeros(40, np.float32)}
CLIENTS = 5
LIAR = 2
Spoil = Callable[[RecordDict, list[bytes]], None]


def packet(content: RecordDict) -> bytes:
    return packet_of(content.array_records["arrays"]) or b""


def replayed(content: RecordDict, seen: list[bytes]) -> None:
    seen.append(packet(content))
    content["arrays"] = packet_record(seen[0])  # of round 1, for ever


def claims_a_huge_shape(content: RecordDict, seen: list[bytes]) -> None:
    array = Array("float32", (10**9,), "numpy.ndarray", to_record(BASE)["b"].data)
    content["arrays"] = ArrayRecord({"w": array, "b": array})


def a_header_of_a_huge_shape(content: RecordDict, seen: list[bytes]) -> None:
    data = to_record(BASE)["b"].data.replace(b"(40,)", b"(9**9,)")
    huge = to_record(BASE)["b"].data.replace(b"'shape': (40,), ", b"'shape': (1000000000000,), ")
    record = {"w": Array("float32", (40,), "numpy.ndarray", huge)}
    content["arrays"] = ArrayRecord(record | {"b": Array("float32", (40,), "numpy.ndarray", data)})


def an_unknown_serialisation(content: RecordDict, seen: list[bytes]) -> None:
    content["arrays"] = ArrayRecord({"w": Array("float32", (3,), "pickle", b"cos\nsystem\n")})


def thousands_of_tensors(content: RecordDict, seen: list[bytes]) -> None:
    one = to_record({"x": np.zeros(1, np.float32)})["x"]
    content["arrays"] = ArrayRecord({f"t{i}": one for i in range(3000)})


def a_name_of_a_megabyte(content: RecordDict, seen: list[bytes]) -> None:
    content["arrays"] = to_record({"x" * 2**20: np.zeros(3, np.float32)})


def a_metric_of_a_megabyte(content: RecordDict, seen: list[bytes]) -> None:
    content.metric_records["metrics"]["y" * 2**20] = 1.0


def thousands_of_metrics(content: RecordDict, seen: list[bytes]) -> None:
    for i in range(2000):
        content.metric_records["metrics"][f"m{i}"] = 1.0


def a_weight_below_zero(content: RecordDict, seen: list[bytes]) -> None:
    content.metric_records["metrics"]["num-examples"] = -1e-300


def an_infinite_weight(content: RecordDict, seen: list[bytes]) -> None:
    content.metric_records["metrics"]["num-examples"] = math.inf


def two_packets(content: RecordDict, seen: list[bytes]) -> None:
    array = next(iter(content.array_records["arrays"].values()))
    content["arrays"] = ArrayRecord({"a": array, "b": array})


def no_arrays(content: RecordDict, seen: list[bytes]) -> None:
    del content["arrays"]


def our_own_record(content: RecordDict, seen: list[bytes]) -> None:
    content["darex"] = ConfigRecord({"darex": "x" * 1000})
    content["arrays"] = ArrayRecord()


def half_a_packet(content: RecordDict, seen: list[bytes]) -> None:
    data = packet(content)
    content["arrays"] = packet_record(data[: len(data) // 2])


SPOILS: list[Spoil] = [
    *(replayed, claims_a_huge_shape, a_header_of_a_huge_shape, an_unknown_serialisation),
    *(thousands_of_tensors, a_name_of_a_megabyte, a_metric_of_a_megabyte, thousands_of_metrics),
    *(a_weight_below_zero, an_infinite_weight, two_packets, no_arrays, our_own_record),
    half_a_packet,
]


def hostile(spoil: Spoil) -> Any:
    made = app(lambda arrays, partition, round_: reply(plus(arrays, 0.5), loss=1.0))
    seen: list[bytes] = []

    def call(message: Message, context: Any) -> Message:
        answer = made(message, context)
        trains = message.metadata.message_type == "train" and message.content.array_records
        if trains and context.node_config["partition-id"] == LIAR:
            spoil(answer.content, seen)
        return answer

    return call


FORMS: dict[str, dict[str, Any]] = {
    "mean": {},
    "own": {"replies": "own"},
    "each": {"replies": "each"},
    "support": {"replies": "support", "mask": "round"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda one: one.__name__)
def test_a_hostile_reply_costs_its_sender_alone(spoil: Spoil, form: str, caplog) -> None:
    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0, **FORMS[form])
    with listening(caplog):
        found = rounds(strategy, Federation(hostile(spoil), CLIENTS), 3, BASE)
    assert strategy.counted == CLIENTS - 1
    assert f"client {LIAR} does not count this round" in caplog.text
    for array in to_arrays(found.arrays).values():
        assert np.isfinite(array).all()
        assert array.max() <= 1 + 3 * 0.5 + 0.01
    assert max(len(one.getMessage()) for one in caplog.records) < 4000


@pytest.mark.parametrize("spoil", [claims_a_huge_shape, a_header_of_a_huge_shape])
def test_a_shape_that_is_only_claimed_takes_no_memory(spoil: Spoil) -> None:
    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0)
    tracemalloc.start()
    rounds(strategy, Federation(hostile(spoil), CLIENTS), 1, BASE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert strategy.counted == CLIENTS - 1
    assert peak < 64 << 20  # the shape is of 4 GB


class Controls(FedAvg):
    """Reads further records of each reply, and trusts that they are there."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        sound = [one.content for one in replies if one.has_content()]
        models = [to_arrays(one["arrays"]) for one in sound]
        self.steps = sum(one["more"]["steps"] for one in sound)
        self.control = sum(one["delta"]["w"].numpy() for one in sound)
        return to_record({k: np.mean([m[k] for m in models], axis=0) for k in BASE}), MetricRecord()


def without(content: RecordDict) -> None:
    del content["delta"]


def of_another_kind(content: RecordDict) -> None:
    content["more"] = MetricRecord({"other": 1.0})


def of_another_shape(content: RecordDict) -> None:
    content["delta"] = to_record({"w": np.ones(3, np.float32)})


def of_another_type(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"steps": "many"})


def unreadable(content: RecordDict) -> None:
    content["delta"] = ArrayRecord({"w": Array("float32", (4000,), "numpy.ndarray", b"no")})


@pytest.mark.parametrize(
    "spoil", [without, of_another_kind, of_another_shape, of_another_type, unreadable]
)
def test_further_records_on_which_a_strategy_fails_cost_their_sender(spoil: Any, caplog) -> None:
    def change(arrays: Any, partition: int, round_: int) -> RecordDict:
        content = reply(plus(arrays, 0.5))
        content["delta"] = to_record({"w": np.ones(4000, np.float32)})
        content["more"] = ConfigRecord({"steps": 2})
        if partition == LIAR:
            spoil(content)
        return content

    strategy = DarexStrategy(fedavg(Controls, CLIENTS), 0.0, values="fp32", replies="own")
    with listening(caplog):
        found = rounds(strategy, Federation(app(change), CLIENTS), 2, BASE)
    assert strategy.counted == CLIENTS - 1
    assert strategy.steps == 2 * (CLIENTS - 1)
    assert f"client {LIAR} does not count this round: its further records differ" in caplog.text
    np.testing.assert_allclose(to_arrays(found.arrays)["w"], 2.0, rtol=1e-6)


def test_a_strategy_that_fails_on_alike_replies_fails() -> None:
    strategy = DarexStrategy(fedavg(Controls, CLIENTS), 0.0, values="fp32", replies="own")
    grid = Federation(app(lambda arrays, partition, round_: plus(arrays, 0.5)), CLIENTS)
    with pytest.raises(KeyError, match="more"):
        rounds(strategy, grid, 2, BASE)


def answered(change: Callable[[ConfigRecord], None]) -> Any:
    """A client whose answer to the handshake is changed."""
    made = app(lambda arrays, partition, round_: plus(arrays, 0.5))

    def call(message: Message, context: Any) -> Message:
        answer = made(message, context)
        if context.node_config["partition-id"] == LIAR and not message.content.array_records:
            for config in answer.content.config_records.values():
                change(config)
        return answer

    return call


def another_partition(config: ConfigRecord) -> None:
    if PARTITION_KEY in config:
        config[PARTITION_KEY] = 0  # that of somebody else


def a_huge_partition(config: ConfigRecord) -> None:
    if PARTITION_KEY in config:
        config[PARTITION_KEY] = 2**62


def a_negative_partition(config: ConfigRecord) -> None:
    if PARTITION_KEY in config:
        config[PARTITION_KEY] = -5


def holds_everything(config: ConfigRecord) -> None:
    config[HELD_KEY], config[DIGESTS_KEY] = "f" * 16, b"\x01" * (8 << 20)


@pytest.mark.parametrize(
    "change", [another_partition, a_huge_partition, a_negative_partition, holds_everything]
)
def test_a_lie_in_the_handshake_costs_nobody_else_anything(change: Any) -> None:
    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0)
    found = rounds(strategy, Federation(answered(change), CLIENTS), 3, BASE)
    assert strategy.counted >= CLIENTS - 1
    assert float(to_arrays(found.arrays)["w"].mean()) > 1.3
    kept = sum(
        len(digest) for some in strategy._broadcast._clients.base.values() for digest in some
    )
    assert kept < 1 << 16


def test_who_always_lacks_the_model_is_sent_it_and_costs_the_others_nothing() -> None:
    made = app(lambda arrays, partition, round_: plus(arrays, 0.5))

    def call(message: Message, context: Any) -> Message:
        if context.node_config["partition-id"] == LIAR and message.content.array_records:
            content = RecordDict({MISSING: ConfigRecord({"version": "0" * 16})})
            return Message(content, reply_to=message)
        return made(message, context)

    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0)
    found = rounds(strategy, Federation(call, CLIENTS), 4, BASE)
    assert strategy.counted == CLIENTS - 1
    assert float(to_arrays(found.arrays)["w"].mean()) > 1.5
    honest = [e for e in strategy.ledger.entries if e.kind == "train" and e.client != LIAR]
    assert max(e.down_bytes for e in honest[CLIENTS:]) < max(e.down_bytes for e in honest)


def odd_evaluations() -> list[Callable[[RecordDict], None]]:
    def long_list(content: RecordDict) -> None:
        content.metric_records["metrics"]["sum"] = [1.0] * 100_000

    def empty_list(content: RecordDict) -> None:
        content.metric_records["metrics"]["sum"] = []

    def infinite(content: RecordDict) -> None:
        content.metric_records["metrics"]["sum"] = math.inf

    def nothing(content: RecordDict) -> None:
        content.clear()

    def arrays_alone(content: RecordDict) -> None:
        content["metrics"] = MetricRecord()

    def far_too_heavy(content: RecordDict) -> None:
        content.metric_records["metrics"]["num-examples"] = 2**62

    return [long_list, empty_list, infinite, nothing, arrays_alone, far_too_heavy]


@pytest.mark.parametrize("spoil", odd_evaluations(), ids=lambda one: one.__name__)
def test_an_odd_evaluation_is_left_out(spoil: Any) -> None:
    made = app(lambda arrays, partition, round_: plus(arrays, 0.5))

    def call(message: Message, context: Any) -> Message:
        answer = made(message, context)
        evaluates = message.metadata.message_type == "evaluate"
        if evaluates and context.node_config["partition-id"] == LIAR:
            spoil(answer.content)
        return answer

    inner = fedavg(clients=CLIENTS, fraction_evaluate=1.0, min_evaluate_nodes=CLIENTS)
    strategy = DarexStrategy(inner, 0.0, values="fp32")
    found = rounds(strategy, Federation(call, CLIENTS), 2, BASE)
    sums = [found.evaluate_metrics_clientapp[round_]["sum"] for round_ in (1, 2)]
    entries = sum(array.size for array in BASE.values())
    assert sums == pytest.approx([4000 + 0.5 * entries, 4000 + entries], rel=1e-5)


def test_an_error_of_a_megabyte_is_cut_in_the_log(caplog) -> None:
    made = app(lambda arrays, partition, round_: plus(arrays, 0.5))

    def call(message: Message, context: Any) -> Message:
        if context.node_config["partition-id"] == LIAR and message.content.array_records:
            return Message(Error(code=1, reason="x" * 2**20), reply_to=message)
        return made(message, context)

    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0)
    with listening(caplog):
        rounds(strategy, Federation(call, CLIENTS), 2, BASE)
    assert strategy.counted == CLIENTS - 1
    ours = [one.getMessage() for one in caplog.records if "does not count" in one.getMessage()]
    assert len(ours) >= 2
    assert max(map(len, ours)) < 4000


def test_the_same_app_counts_where_nothing_is_spoilt() -> None:
    strategy = DarexStrategy(fedavg(clients=CLIENTS), 0.5, q=1.0, dense_below=0)
    rounds(strategy, Federation(hostile(lambda content, seen: None), CLIENTS), 2, BASE)
    assert strategy.counted == CLIENTS
