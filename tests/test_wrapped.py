"""Every strategy of Flower inside `DarexStrategy`, against the same strategy on full tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import federations
import numpy as np
import pytest
from apps import BASE, numpy_app, step_of
from federations import Federation, listening, rounds
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from fl_darex.clients import DarexMod
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.masks import SHARED
from fl_darex.pruning import dare
from fl_darex.strategies import DarexStrategy

CLIENTS = 7
SEED = 5
run = partial(federations.run, clients=CLIENTS)

COMPARING: dict[str, Any] = {
    "FedMedian": lambda **o: flower.FedMedian(**o),
    "FedTrimmedAvg": lambda **o: flower.FedTrimmedAvg(beta=0.2, **o),
    "Krum": lambda **o: flower.Krum(num_malicious_nodes=2, **o),
    "MultiKrum": lambda **o: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3, **o),
    "Bulyan": lambda **o: flower.Bulyan(num_malicious_nodes=1, **o),
    "QFedAvg": lambda **o: flower.QFedAvg(
        client_learning_rate=0.1, train_loss_key="num-examples", q=0.2, **o
    ),
}
LINEAR: dict[str, Any] = {
    "FedAvg": lambda **o: flower.FedAvg(**o),
    "FedProx": lambda **o: flower.FedProx(proximal_mu=0.1, **o),
    "FedAvgM": lambda **o: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9, **o),
    "FedAdam": lambda **o: flower.FedAdam(eta=0.01, **o),
    "FedYogi": lambda **o: flower.FedYogi(eta=0.01, **o),
    "FedAdagrad": lambda **o: flower.FedAdagrad(eta=0.01, **o),
}


def made(kind: Any, clients: int = CLIENTS) -> Any:
    strategy = kind(min_train_nodes=clients, min_available_nodes=clients)
    strategy.fraction_evaluate = 0.0
    return strategy


def full(partition: int, round_: int, now: dict[str, np.ndarray], p: float) -> dict[str, Any]:
    """What a client's packet stands for, as whole tensors."""
    tuned = {k: v + step_of(partition, round_, v.shape) for k, v in now.items()}
    change = dare(Delta(tuned, now), p, seed=SEED, round_=round_, slot=SHARED).rescaled()
    return {k: (v + change[k]).astype(np.float32) for k, v in now.items()}


def plain_rounds(kind: Any, count: int, p: float) -> dict[str, np.ndarray]:
    """Flower's own strategy, given the whole tensors that packets stand for."""
    plain, arrays = made(kind), to_record(BASE)
    for round_ in range(1, count + 1):
        grid = Federation(numpy_app(), CLIENTS)
        list(plain.configure_train(round_, arrays, ConfigRecord(), grid))
        now = to_arrays(arrays)
        replies = [
            reply_of(to_record(full(partition, round_, now, p)), partition)
            for partition in range(CLIENTS)
        ]
        found, _ = plain.aggregate_train(round_, replies)
        arrays = to_record({k: v.astype(np.float32) for k, v in to_arrays(found).items()})
    return to_arrays(arrays)


def reply_of(arrays: ArrayRecord, partition: int) -> Message:
    metrics = MetricRecord({"num-examples": partition + 1, "loss": float(partition)})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, dst_node_id=1, message_type="train")


@pytest.mark.parametrize("p", [0.0, 0.9])
@pytest.mark.parametrize("kind", COMPARING.values(), ids=COMPARING)
def test_strategies_that_compare_clients_do_so_on_the_shared_support(kind: Any, p: float) -> None:
    options: dict[str, Any] = {"values": "fp32", "mask": "round", "seed": SEED}
    found = run(DarexStrategy(made(kind), p, **options, dense_below=0), 2)
    expected = plain_rounds(kind, 2, p)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-6)
        changed = np.mean(found[name] != BASE[name])
        assert 0.0 < changed < 0.3 if p else changed > 0.1


@pytest.mark.parametrize("kind", LINEAR.values(), ids=LINEAR)
def test_strategies_that_average_take_their_own_step_on_the_mean(kind: Any) -> None:
    options: dict[str, Any] = {"values": "fp32", "mask": "round", "seed": SEED}
    found = run(DarexStrategy(made(kind), 0.9, **options, dense_below=0), 3)
    expected = plain_rounds(kind, 3, 0.9)
    for name, array in expected.items():
        # Adam divides by the root of a second moment: round-off in a small step grows.
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", COMPARING.values(), ids=COMPARING)
def test_independent_masks_are_refused_where_clients_are_compared(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"compares clients.*use mask='round'"):
        DarexStrategy(made(kind), 0.99)
    DarexStrategy(made(kind), method="dense")  # nothing is dropped, so all can be compared


@pytest.mark.parametrize(
    ("strategy", "options", "says"),
    [
        (COMPARING["Krum"], {"replies": "mean", "mask": "round"}, "cannot be given replies='mean'"),
        (COMPARING["Krum"], {"replies": "all"}, "replies must be one of"),
        (
            COMPARING["Krum"],
            {"mask": "round", "q": "server-validation", "validate": lambda arrays: 0.0},
            "searches along the average",
        ),
        (
            COMPARING["Krum"],
            {"mask": "round", "q": "group-server-validation", "validate": lambda arrays: 0.0},
            "q = 'group-server-validation' searches along the average",
        ),
        (lambda **o: flower.FedXgbBagging(**o), {}, "exchanges trees"),
        (LINEAR["FedAvg"], {"clip": 0.0}, "clip is the largest norm of an update"),
        (LINEAR["FedAvg"], {"clip": float("nan")}, "clip is the largest norm of an update"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_round(strategy, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        DarexStrategy(made(strategy), **options)


def test_the_median_ignores_a_liar_whose_mean_would_win() -> None:
    def lie(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 3:
            arrays = to_arrays(reply.content["arrays"])
            reply.content["arrays"] = to_record({k: v + np.float32(1e3) for k, v in arrays.items()})
        return reply

    def moved(kind: Any) -> float:
        found = run(DarexStrategy(made(kind), 0.9, mask="round"), mods=[DarexMod(), lie])
        return max(float(np.abs(found[k] - BASE[k]).max()) for k in BASE)

    assert moved(COMPARING["FedMedian"]) < 1.0 < 100.0 < moved(LINEAR["FedAvg"])


def test_a_client_without_the_mod_is_compared_where_the_others_have_values() -> None:
    class Some(DarexMod):
        def __call__(self, message: Any, context: Any, call_next: Any) -> Any:
            if context.node_config["partition-id"] == 2:
                return call_next(message, context)
            return super().__call__(message, context, call_next)

    options: dict[str, Any] = {"values": "fp32", "mask": "round", "seed": SEED, "q": 1.0}
    strategy = DarexStrategy(
        made(COMPARING["FedMedian"]), 0.9, downlink="dense", **options, dense_below=0
    )
    found = run(strategy, mods=[Some()])
    assert strategy.counted == CLIENTS
    # With q = 1 a survivor is the change itself, as the dense client says it.
    everybody = {
        k: np.median([v + step_of(i, 1, v.shape) for i in range(CLIENTS)], axis=0)
        for k, v in BASE.items()
    }
    tuned = {k: v + 1 for k, v in BASE.items()}
    where = dare(Delta(tuned, BASE), 0.9, seed=SEED, round_=1, slot=SHARED).positions
    for name, positions in where.items():
        flat, base = found[name].reshape(-1), BASE[name].reshape(-1)
        expected = everybody[name].reshape(-1)[positions]
        np.testing.assert_allclose(flat[positions], expected, rtol=0, atol=1e-6)
        assert (np.delete(flat, positions) == np.delete(base, positions)).all()


def test_a_client_whose_metrics_differ_costs_its_reply_where_clients_are_compared(caplog) -> None:
    def odd(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 4:
            next(iter(reply.content.metric_records.values()))["more"] = 1.0
        return reply

    strategy = DarexStrategy(made(COMPARING["FedMedian"]), 0.9, mask="round")

    with listening(caplog):
        run(strategy, mods=[DarexMod(), odd])
    assert strategy.counted == CLIENTS - 1
    assert "client 4 does not count this round: its metrics differ" in caplog.text


def test_the_average_over_many_seeds_is_the_dense_mean_within_the_standard_error() -> None:
    weights = np.arange(1, CLIENTS + 1) / sum(range(1, CLIENTS + 1))
    p, trials = 0.9, 100
    found = [
        run(DarexStrategy(made(LINEAR["FedAvg"]), p, values="fp32", seed=seed, downlink="dense"))
        for seed in range(trials)
    ]
    for name, base in BASE.items():
        steps = np.stack([step_of(i, 1, base.shape) for i in range(CLIENTS)]).astype(np.float64)
        mean = np.tensordot(weights, steps, 1)
        variance = np.tensordot(weights**2, steps**2, 1) * p / (1 - p)
        gap = np.mean([one[name] - base for one in found], axis=0) - mean
        z = gap / np.sqrt(variance / trials)
        assert abs(z.mean()) < 4 / np.sqrt(z.size)
        assert np.mean(z**2) == pytest.approx(1.0, abs=6 * np.sqrt(2 / z.size) + 0.05)


# --- a user's own strategy --------------------------------------------------------------------


class Controlled(FedAvg):
    """Sends control variates beside the model and adds up what comes back, as SCAFFOLD does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.control = to_record({"c": np.zeros(3, np.float32)})
        self.seen: list[tuple[float, float]] = []

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        for message in super().configure_train(server_round, arrays, config, grid):
            # The control comes first: the model is not simply the first record.
            message.content = RecordDict({"control": self.control, **message.content})
            yield message

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        controls = [to_arrays(reply.content.pop("control"))["c"] for reply in replies]
        self.control = to_record({"c": np.mean(controls, axis=0)})
        for reply in replies:
            assert reply.content.config_records["note"]["from"] == "client"
            del reply.content["note"]
            metrics = reply.content.metric_records["metrics"]
            self.seen.append((float(metrics["num-examples"]), float(metrics["loss"])))
        return super().aggregate_train(server_round, replies)


def controlled_app() -> Any:
    """Trains as the others do, and answers with a control of its own."""

    def control(message: Message, context: Any, call_next: Any) -> Message:
        if "control" not in message.content:
            return call_next(message, context)
        before = to_arrays(message.content.array_records["control"])["c"]
        del message.content["control"]
        reply = call_next(message, context)
        own = before + np.float32(context.node_config["partition-id"])
        reply.content = RecordDict(
            {
                "control": to_record({"c": own}),
                **reply.content,
                "note": ConfigRecord({"from": "client"}),
            }
        )
        return reply

    return numpy_app([DarexMod(), control])


@pytest.mark.parametrize("downlink", ["dense", "update"])
def test_a_strategy_of_ones_own_sees_every_reply_and_all_of_its_records(downlink: str) -> None:
    own = Controlled(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
    options: dict[str, Any] = {"replies": "each", "seed": SEED, "values": "fp32"}
    strategy = DarexStrategy(own, 0.9, downlink=downlink, **options)
    found = to_arrays(rounds(strategy, Federation(controlled_app(), CLIENTS), 3).arrays)
    assert strategy.counted == CLIENTS
    assert own.seen == [(i + 1.0, float(i)) for i in range(CLIENTS)] * 3
    np.testing.assert_allclose(to_arrays(own.control)["c"], np.full(3, 3 * 3.0))
    without = run(DarexStrategy(made(LINEAR["FedAvg"]), 0.9, seed=SEED, values="fp32"), 3)
    for name, array in without.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
    trained = [entry for entry in strategy.ledger.entries if entry.kind == "train"]
    dense = sum(array.nbytes for array in BASE.values())
    for entry in trained:
        assert entry.dense_up_bytes > dense > 3 * entry.up_bytes


def test_the_dense_column_of_several_records_is_what_plain_flower_sends() -> None:
    from fl_darex.flower.ledger import Ledger, LedgerGrid

    def bytes_of(mods: bool) -> list[tuple[int, int]]:
        own = Controlled(
            min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0
        )
        if mods:
            strategy = DarexStrategy(own, 0.9, replies="each", seed=SEED)
            rounds(strategy, Federation(controlled_app(), CLIENTS), 1)
            ledger = strategy.ledger
        else:
            ledger = Ledger()
            rounds(own, LedgerGrid(Federation(controlled_app(), CLIENTS), ledger), 1)
        train = [entry for entry in ledger.entries if entry.kind == "train"]
        return sorted((entry.dense_up_bytes, entry.dense_down_bytes) for entry in train)

    assert bytes_of(True) == bytes_of(False)


def test_a_strategy_that_asks_for_the_mean_is_given_everybodys_weight_and_mean_metrics() -> None:
    seen: list[MetricRecord] = []

    class Own(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            seen.extend(reply.content.metric_records["metrics"] for reply in replies)
            return super().aggregate_train(server_round, replies)

    own = Own(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
    run(DarexStrategy(own, 0.9, replies="mean"))
    weights = np.arange(1, CLIENTS + 1)
    assert len(seen) == 1
    assert seen[0]["num-examples"] == weights.sum()
    assert seen[0]["loss"] == pytest.approx(np.average(np.arange(CLIENTS), weights=weights))


def test_two_records_of_which_none_is_the_model_are_an_error_of_that_client(caplog) -> None:
    def rename(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        arrays = to_arrays(reply.content.pop("arrays"))
        reply.content["a"] = to_record({"x": arrays["layer.bias"]})
        reply.content["b"] = to_record({"y": arrays["layer.bias"]})
        return reply

    def some(message: Message, context: Any, call_next: Any) -> Message:
        odd = context.node_config["partition-id"] == 1
        return rename(message, context, call_next) if odd else call_next(message, context)

    strategy = DarexStrategy(made(LINEAR["FedAvg"]), 0.9)
    with listening(caplog):
        run(strategy, mods=[DarexMod(), some])
    assert strategy.counted == CLIENTS - 1
    assert "client 1 does not count this round: DeltaError: the reply holds 2" in caplog.text
    with pytest.raises(DeltaError, match="which one is the model"):
        run(DarexStrategy(made(LINEAR["FedAvg"]), 0.9), mods=[DarexMod(), rename])


class CountsFromItsModel(flower.FedAvgM):
    """FedAvgM that says whether it counts its steps from the model that it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[bool] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, *more: Any) -> Any:
        now = self.current_arrays or arrays
        self.seen.append(all(now[name].data == arrays[name].data for name in arrays))
        return super().configure_train(server_round, arrays, *more)


def test_in_every_round_fedavgm_counts_from_the_rounded_model_that_clients_hold():
    inner = made(partial(CountsFromItsModel, server_momentum=0.9))
    run(DarexStrategy(inner, p=0.9, downlink_values="int8"), 4)
    assert inner.seen == [True] * 4
