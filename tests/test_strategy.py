from __future__ import annotations

import logging
from typing import Any, get_args

import numpy as np
import pytest
from apps import BASE, numpy_app, step_of
from federations import CLIENTS, Federation, fedavg, listening, rounds, run
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from golden import forge, seal, take_apart
from papers import NEEDS

from fl_darex.clients import DarexMod
from fl_darex.compression import METHODS
from fl_darex.config import CompressConfig
from fl_darex.flower.private import node_id_of
from fl_darex.flower.records import packet_of, packet_record, to_arrays, to_record
from fl_darex.pruning import dare
from fl_darex.pruning.scores import SCOPES
from fl_darex.rescaling.rules import RULES, SERVER_RULES
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.codings import CODINGS

WEIGHTS = np.arange(1, CLIENTS + 1)


def dense_mean(round_: int = 1) -> dict[str, np.ndarray]:
    return {
        name: base.astype(np.float64)
        + sum(w * step_of(i, round_, base.shape) for i, w in enumerate(WEIGHTS)) / WEIGHTS.sum()
        for name, base in BASE.items()
    }


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def test_p_zero_equals_dense_averaging_to_float32_round_off() -> None:
    found = run(DarexStrategy(fedavg(), p=0.0, values="fp32"))
    for name, mean in dense_mean().items():
        # A delta, K weighted additions, a division and the final addition: each rounds once,
        # relative to numbers of at most |base| + sum of |weight * step|.
        size = np.abs(BASE[name]).max() + 1.0
        bound = (CLIENTS + 4) * np.finfo(np.float32).eps * size
        assert np.abs(found[name] - mean).max() <= bound


def test_the_null_compressor_has_the_bits_of_flowers_fedavg_in_partition_order() -> None:
    found = run(DarexStrategy(fedavg(), method="dense", downlink="dense"), reverse=True)
    contents = [
        RecordDict(
            {
                "arrays": to_record({k: v + step_of(i, 1, v.shape) for k, v in BASE.items()}),
                "metrics": MetricRecord({"num-examples": i + 1}),
            }
        )
        for i in range(CLIENTS)
    ]
    assert same_bits(found, to_arrays(aggregate_arrayrecords(contents, "num-examples")))


@pytest.mark.parametrize("mask", ["client", "round"])
def test_the_average_is_the_mean_of_what_each_client_pruned(mask: str) -> None:
    found = run(
        DarexStrategy(fedavg(), p=0.9, q=0.2, values="fp32", mask=mask, seed=5, dense_below=0)
    )
    expected = {name: base.astype(np.float64) for name, base in BASE.items()}
    for i, weight in enumerate(WEIGHTS):
        steps = {k: (v + step_of(i, 1, v.shape)) - v for k, v in BASE.items()}
        slot = i if mask == "client" else -1
        kept = dare(steps, 0.9, seed=5, round_=1, slot=slot)
        for name, change in kept.rescaled().items():
            expected[name] += weight / WEIGHTS.sum() * change * kept.q / 0.2
    for name, mean in expected.items():
        np.testing.assert_allclose(found[name], mean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.99])
def test_the_result_does_not_depend_on_who_answers_first(p: float) -> None:
    one, other = (run(DarexStrategy(fedavg(), p=p), 3, reverse=r) for r in (False, True))
    assert same_bits(one, other)


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not() -> None:
    one, again, other = (run(DarexStrategy(fedavg(), p=0.9, seed=s), 2) for s in (3, 3, 4))
    assert same_bits(one, again)
    assert not same_bits(one, other)


def test_tensors_named_dense_arrive_whole() -> None:
    strategy = DarexStrategy(fedavg(), p=0.99, values="fp32", dense=["head.weight"])
    found = run(strategy)["head.weight"]
    np.testing.assert_allclose(found, dense_mean()["head.weight"], rtol=0, atol=1e-6)


def test_naming_a_dense_tensor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dense names no such tensor: \['nose'\]"):
        run(DarexStrategy(fedavg(), dense=["nose"]))
    with pytest.raises(ValueError, match="dense = 'head' is not allowed; it must be a list"):
        DarexStrategy(fedavg(), dense="head")


@pytest.mark.parametrize("kind", [FedAvgM, FedAdam])
def test_a_server_optimizer_takes_its_own_step_on_the_averaged_change(kind: type[FedAvg]) -> None:
    options: dict[str, Any] = (
        {"server_learning_rate": 0.7, "server_momentum": 0.9} if kind is FedAvgM else {"eta": 0.01}
    )
    found = run(DarexStrategy(fedavg(kind, **options), p=0.0, values="fp32"), 3)
    # The same optimizer, given one dense reply a round that is the mean of the clients.
    plain = fedavg(kind, **options, min_train_nodes=1, min_available_nodes=1)
    arrays = to_record(BASE)
    for round_ in (1, 2, 3):
        grid = Federation(numpy_app(), 1)
        list(plain.configure_train(round_, arrays, ConfigRecord(), grid))
        now = to_arrays(arrays)
        steps = {
            k: sum(w * step_of(i, round_, v.shape) for i, w in enumerate(WEIGHTS)) / WEIGHTS.sum()
            for k, v in now.items()
        }
        mean = {k: (v + steps[k]).astype(np.float32) for k, v in now.items()}
        reply = Message(
            RecordDict({"arrays": to_record(mean), "m": MetricRecord({"num-examples": 1})}),
            dst_node_id=1,
            message_type="train",
        )
        arrays, _ = plain.aggregate_train(round_, [reply])
    for name, array in to_arrays(arrays).items():
        # Adam divides by the root of a second moment: round-off in a small step grows.
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-5)


def test_a_client_without_the_mod_counts_with_its_dense_reply() -> None:
    strategy = DarexStrategy(fedavg(), p=0.99, downlink="dense")
    grid = Federation(numpy_app(), CLIENTS)
    found = to_arrays(rounds(strategy, grid, 1).arrays)
    for name, mean in dense_mean().items():
        np.testing.assert_allclose(found[name], mean, rtol=0, atol=1e-6)


def test_a_client_without_the_mod_is_named_once_and_sent_the_whole_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class AllButOne(DarexMod):
        def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
            if context.node_config["partition-id"] == 2:
                return call_next(message, context)
            return super().__call__(message, context, call_next)

    strategy = DarexStrategy(fedavg(), p=0.99, mask="round")
    caplog.set_level(logging.INFO, logger="flwr")
    with listening(caplog):
        rounds(strategy, Federation(numpy_app([AllButOne()]), CLIENTS), 3)
    assert strategy.counted == CLIENTS
    told = {id(r): r.getMessage() for r in caplog.records if "whole tensors" in r.getMessage()}
    assert len(told) == 1
    assert "client 2 sends whole tensors: its ClientApp has no DarexMod" in caplog.text
    last = [entry for entry in strategy.ledger.of_round(3) if entry.kind == "train"]
    assert [entry.client for entry in last if entry.up_bytes == entry.dense_up_bytes] == [2]
    assert last[2].down_bytes >= last[2].dense_down_bytes


def test_a_weight_above_what_is_believed_costs_that_reply(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = DarexStrategy(fedavg(), p=0.9, max_weight=3)
    with listening(caplog):
        rounds(strategy, Federation(numpy_app([DarexMod()]), CLIENTS), 1)
    assert strategy.counted == CLIENTS - 1
    assert "client 3 does not count this round: the weight 'num-examples' is 4" in caplog.text


def test_dense_and_packed_replies_average_together() -> None:
    class Mixed(DarexMod):
        def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
            if context.node_config["partition-id"] % 2:
                return call_next(message, context)
            return super().__call__(message, context, call_next)

    strategy = DarexStrategy(fedavg(), p=0.0, values="fp32")
    found = to_arrays(rounds(strategy, Federation(numpy_app([Mixed()]), CLIENTS), 1).arrays)
    for name, mean in dense_mean().items():
        np.testing.assert_allclose(found[name], mean, rtol=0, atol=1e-6)


def test_a_client_that_raises_costs_its_reply_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = DarexStrategy(fedavg(), p=0.0, values="fp32")
    with listening(caplog):
        found = run(strategy, broken=(2,))
    assert strategy.counted == CLIENTS - 1
    assert "client 2 does not count this round: RuntimeError: client 2 is broken" in caplog.text
    for name, base in BASE.items():
        steps = [w * step_of(i, 1, base.shape) for i, w in enumerate(WEIGHTS) if i != 2]
        mean = base + sum(steps) / (WEIGHTS.sum() - WEIGHTS[2])
        np.testing.assert_allclose(found[name], mean, rtol=0, atol=1e-6)


def test_a_round_in_which_all_clients_fail_leaves_the_model_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = DarexStrategy(fedavg(), p=0.9)
    with listening(caplog):
        result = rounds(strategy, Federation(numpy_app([DarexMod()], tuple(range(4))), 4), 2)
    assert "no reply of this round can be used" in caplog.text
    assert not result.arrays


class Spoiler:
    """A client that is honest but for one thing, which a function does to its reply."""

    def __init__(self, spoil: Any, partition: int = 1) -> None:
        self.spoil, self.partition = spoil, partition

    def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == self.partition:
            self.spoil(reply)
        return reply


def _packet(reply: Message) -> tuple[str, bytes]:
    name, record = next(iter(reply.content.array_records.items()))
    packet = packet_of(record)
    assert packet is not None
    return name, packet


def _truncate(reply: Message) -> None:
    name, packet = _packet(reply)
    reply.content[name] = packet_record(packet[:-3])


def _flip(reply: Message) -> None:
    name, packet = _packet(reply)
    reply.content[name] = packet_record(packet[:-1] + bytes([packet[-1] ^ 1]))


def _one_survivor_less(reply: Message) -> None:
    name, packet = _packet(reply)
    fields, body = take_apart(packet)
    sound = seal(fields | {"survivors": fields["survivors"] - 1}, body[:-2])
    reply.content[name] = packet_record(sound)


def _of_another(**changes: Any) -> Any:
    """What a replay of another round's or another client's packet looks like."""

    def spoil(reply: Message) -> None:
        name, packet = _packet(reply)
        reply.content[name] = packet_record(forge(packet, **changes))

    return spoil


def _metric(value: Any) -> Any:
    def spoil(reply: Message) -> None:
        next(iter(reply.content.metric_records.values()))["num-examples"] = value

    return spoil


def _other_model(reply: Message) -> None:
    reply.content["arrays"] = to_record({"other": np.zeros(3, np.float32)})


def _nan(reply: Message) -> None:
    reply.content["arrays"] = to_record({k: np.full_like(v, np.nan) for k, v in BASE.items()})


def _of_type(dtype: str) -> Any:
    def spoil(reply: Message) -> None:
        reply.content["arrays"] = to_record({k: v.astype(dtype) for k, v in BASE.items()})

    return spoil


def _too_large_for_float32(reply: Message) -> None:
    reply.content["arrays"] = to_record({k: np.full(v.shape, 1e308) for k, v in BASE.items()})


def _a_zip_file(reply: Message) -> None:
    array = Array("float32", (3,), "numpy.ndarray", b"PK\x03\x04 junk")
    reply.content["arrays"] = ArrayRecord(dict.fromkeys(BASE, array))


def _ten_thousand_times_the_size(reply: Message) -> None:
    array = Array("float32", (50,), "numpy.ndarray", bytes(10_000 * 12_000))
    reply.content["arrays"] = ArrayRecord(dict.fromkeys(BASE, array))


def _two_models(reply: Message) -> None:
    name, packet = _packet(reply)
    del reply.content[name]
    reply.content["a"], reply.content["b"] = packet_record(packet), packet_record(packet)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_truncate, "checksum"),
        (_flip, "checksum"),
        (_one_survivor_less, "survivors are not as many as its mask keeps"),
        (_of_another(round=7), "the packet's round is 7, expected 1"),
        (_of_another(slot=0), "the packet's slot is 0, expected 1"),
        (_of_another(seed=9), "the packet's seed is 9, expected 0"),
        (_of_another(base=b"another!"), "the packet's base version is"),
        (_of_another(q=0.5), "the packet's q is 0.5"),
        (_metric(float("nan")), "the weight 'num-examples' is nan"),
        (_metric(-1), "the weight 'num-examples' is -1"),
        (_metric([1, 2]), r"the weight 'num-examples' is \[1, 2\]"),
        (_other_model, "its tensors differ from those of most clients"),
        (_nan, "NaN or infinite"),
        (_two_models, "must hold one ArrayRecord with the model"),
        (_metric(1e300), "the weight 'num-examples' is 1e"),
        (_of_type("U4"), "is of type <U4, sent was float32"),
        (_of_type("datetime64[s]"), "is of type datetime64"),
        (_of_type("complex64"), "is of type complex64"),
        (_too_large_for_float32, "NaN or infinite"),
        (_a_zip_file, "cannot be read"),
        (_ten_thousand_times_the_size, "far more than were sent"),
    ],
)
def test_a_bad_reply_costs_that_reply_never_the_round(
    spoil: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    import re

    strategy = DarexStrategy(fedavg(), p=0.9)
    app = numpy_app([Spoiler(spoil), DarexMod()])
    with listening(caplog):
        found = to_arrays(rounds(strategy, Federation(app, CLIENTS), 1).arrays)
    assert strategy.counted == CLIENTS - 1
    assert re.search(f"client 1 does not count this round:.*{reason}", caplog.text)
    honest = run(DarexStrategy(fedavg(), p=0.9), broken=(1,))
    assert same_bits(found, honest)


def test_a_client_with_an_odd_metric_costs_its_reply_and_not_the_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def odd(reply: Message) -> None:
        reply.content.metric_records["metrics"]["loss"] = [1.0, 2.0]

    strategy = DarexStrategy(fedavg(), p=0.9)
    app = numpy_app([Spoiler(odd), DarexMod()])
    with listening(caplog):
        found = rounds(strategy, Federation(app, CLIENTS), 1)
    assert "its metrics differ from those of most clients: ['loss']" in caplog.text
    assert strategy.counted == CLIENTS - 1
    assert found.train_metrics_clientapp[1]["loss"] > 0


def test_the_largest_allowed_weights_and_values_do_not_overflow() -> None:
    def heavy(reply: Message) -> None:
        reply.content.metric_records["metrics"]["num-examples"] = 2**53

    app = numpy_app([*(Spoiler(heavy, i) for i in range(CLIENTS)), DarexMod()])
    strategy = DarexStrategy(fedavg(), p=0.0, values="fp32")
    found = to_arrays(rounds(strategy, Federation(app, CLIENTS), 1).arrays)
    for name, base in BASE.items():
        mean = base + sum(step_of(i, 1, base.shape) for i in range(CLIENTS)) / CLIENTS
        np.testing.assert_allclose(found[name], mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mods", [[], [DarexMod()]], ids=["dense", "packed"])
def test_integers_keep_every_bit_and_are_averaged_to_whole_numbers(mods: list[Any]) -> None:
    def count(message: Any, context: Any, call_next: Any) -> Any:
        sent = to_arrays(message.content["arrays"])
        partition = context.node_config["partition-id"]
        changed = {
            "w": sent["w"] + np.float32(1),
            "steps": sent["steps"] + partition,  # mean by weights 1..4: +2
            "same": sent["same"],
            "flag": sent["flag"] | (partition >= 1),
        }
        metrics = MetricRecord({"num-examples": partition + 1})
        content = RecordDict({"arrays": to_record(changed), "metrics": metrics})
        return Message(content, reply_to=message)

    base = {
        "w": np.zeros(4, np.float32),
        "steps": np.array([2**60 + 1, 5]),
        "same": np.array([2**64 - 1], np.uint64),
        "flag": np.array([False]),
    }
    strategy = DarexStrategy(fedavg(), p=0.0, values="fp32")
    grid = Federation(numpy_app([*mods, count]), CLIENTS)
    found = to_arrays(rounds(strategy, grid, 1, base).arrays)
    assert {name: array.dtype for name, array in found.items()} == {
        name: array.dtype for name, array in base.items()
    }
    assert found["w"].tolist() == [1.0] * 4
    assert found["steps"].tolist() == [2**60 + 3, 7]
    assert found["same"].tolist() == [2**64 - 1]
    assert found["flag"].tolist() == [True]


def test_a_second_reply_of_the_same_client_does_not_count() -> None:
    class Twice(Federation):
        def pull_messages(self, message_ids: Any) -> Any:
            replies = list(super().pull_messages(message_ids))
            return [*replies, *replies[:1]]

    strategy = DarexStrategy(fedavg(), p=0.9)
    twice = rounds(strategy, Twice(numpy_app([DarexMod()]), CLIENTS), 1)
    assert strategy.counted == CLIENTS
    assert same_bits(to_arrays(twice.arrays), run(DarexStrategy(fedavg(), p=0.9)))


def test_the_users_own_metric_function_sees_every_reply_without_arrays() -> None:
    seen: list[Any] = []

    def mine(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append([dict(c.metric_records["metrics"]) for c in contents])
        assert all(not c.array_records for c in contents)
        return MetricRecord({"clients": len(contents), "key": float(key == "num-examples")})

    strategy = DarexStrategy(fedavg(train_metrics_aggr_fn=mine), p=0.9)
    result = rounds(strategy, Federation(numpy_app([DarexMod()]), CLIENTS), 1)
    assert [row["num-examples"] for row in seen[0]] == [1, 2, 3, 4]
    assert result.train_metrics_clientapp[1] == {"clients": CLIENTS, "key": 1.0}


def test_clients_are_sampled_by_partition_from_the_runs_own_seed() -> None:
    def asked(seed: int, offset: int) -> list[list[int]]:
        inner = fedavg(fraction_train=0.5, min_train_nodes=2)
        strategy = DarexStrategy(inner, p=0.9, seed=seed)
        grid = Federation(numpy_app([DarexMod()]), CLIENTS)
        # Other node ids, as a new deployment has them, in another order.
        grid.partitions = {node_id_of(i + offset): i for i in reversed(range(CLIENTS))}
        rounds(strategy, grid, 6)
        entries = strategy.ledger.entries
        return [[e.client for e in entries if e.round == r] for r in range(1, 7)]

    assert asked(1, 0) == asked(1, 50)
    assert asked(1, 0) != asked(2, 0)
    assert all(len(clients) == 2 for clients in asked(1, 0))


def test_sampling_leaves_the_global_random_generator_alone() -> None:
    import random

    random.seed(7)
    expected = random.random()
    random.seed(7)
    run(DarexStrategy(fedavg(), p=0.9))
    assert random.random() == expected


def test_settings_ride_in_the_existing_records_and_the_app_does_not_see_them() -> None:
    seen: list[Any] = []

    def spy(message: Any, context: Any, call_next: Any) -> Any:
        seen.append({k: dict(v) for k, v in message.content.config_records.items()})
        return call_next(message, context)

    grid = Federation(numpy_app([DarexMod(), spy]), CLIENTS)
    rounds(DarexStrategy(fedavg(), p=0.9), grid, 1)
    trained = [m for m in grid.pushed if m.content.array_records]
    assert all(list(m.content.config_records) == ["config"] for m in trained)
    assert all("darex" in m.content.config_records["config"] for m in trained)
    assert {str(row) for row in seen} == {"{'config': {'server-round': 1}}"}


def test_the_model_of_a_round_is_one_record_in_all_messages() -> None:
    grid = Federation(numpy_app([DarexMod()]), CLIENTS)
    rounds(DarexStrategy(fedavg(), p=0.9), grid, 1)
    trained = [m for m in grid.pushed if m.content.array_records]
    assert len({id(m.content["arrays"]) for m in trained}) == 1
    assert len({m.content["config"]["darex"] for m in trained}) == CLIENTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"p": -0.1}, r"p must be in \[0, 1\)"),
        ({"q": 0.0}, "q must be 'dare'"),
        ({"q": "dear"}, "q must be 'dare'"),
        ({"values": "fp17"}, "values must be one of .*did you mean 'fp16'"),
        ({"mask": "none"}, "mask must be one of"),
        ({"method": "dara"}, "method must be one of .*did you mean 'dare'"),
        ({"seed": -1}, r"seed = -1 is not allowed; it must be in \[0, 2\*\*63\)"),
        ({"column": 0.5}, "'column' is no option of method 'dare'; its options: none"),
        ({"method": "structured", "columns": 2}, "columns = 2 is not allowed; it must be a number"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DarexStrategy(fedavg(), **options)


def test_every_method_and_coding_can_be_configured() -> None:
    fields = CompressConfig.model_fields
    for method in METHODS:
        needs = NEEDS.get(method, {})
        assert CompressConfig(method=method, **needs).uplink(seed=0).method == method
    for values in CODINGS:
        assert CompressConfig(values=values).uplink(seed=0).values == values
    options = {name for method in METHODS.values() for name in method.options}
    assert {"columns", "scope"} < options < set(fields)
    assert set(get_args(fields["scope"].annotation)) == set(SCOPES)
    rules = {"dare", *RULES, *SERVER_RULES}
    assert set(get_args(get_args(fields["q"].annotation)[0])) == rules
