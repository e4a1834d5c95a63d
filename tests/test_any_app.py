"""Flower apps as people have them: inside `DarexStrategy` each means what it meant.

With p = 0 and fp32 (`EXACT`) a wrapped strategy equals plain Flower to round-off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federations import Federation, fedavg, listening, rounds
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from side_by_side import CLIENTS, EXACT, ONE, app, assert_equal, both, plus, reply, three

from fl_darex.errors import DeltaError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy, SecureAggregation

# --- an aggregation of one's own --------------------------------------------------------------


class OwnMedian(FedAvg):
    """Takes the median of the clients, as people write it."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        models = [to_arrays(r.content["arrays"]) for r in replies if r.has_content()]
        middle = {name: np.median([m[name] for m in models], axis=0) for name in models[0]}
        return to_record(middle), MetricRecord()


def liar(arrays: Any, partition: int, round_: int) -> Any:
    return plus(arrays, 1000.0 if partition == 2 else 1.0)


def test_an_own_aggregation_has_to_say_what_it_needs() -> None:
    with pytest.raises(ValueError, match="aggregate_train of its own") as error:
        DarexStrategy(three(OwnMedian))
    for choice in ("replies='own'", "replies='support' with mask='round'", "replies='each'"):
        assert choice in str(error.value)
    patched = three()
    patched.aggregate_train = lambda round_, replies: (None, None)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="aggregate_train of its own"):
        DarexStrategy(patched)


class Choosing(FedAvg):
    """Leaves out replies where FedAvg looks at them, in place of an aggregation of its own."""

    def _check_and_log_replies(self, replies: Any, is_train: bool, validate: bool = True) -> Any:
        sound, broken = super()._check_and_log_replies(replies, is_train, validate)
        return [one for one in sound if one.content["metrics"]["loss"] < 2.0], broken


def test_a_strategy_that_chooses_among_replies_has_to_say_what_it_needs() -> None:
    with pytest.raises(ValueError, match="_check_and_log_replies of its own; say"):
        DarexStrategy(three(Choosing))

    def change(arrays: Any, partition: int, round_: int) -> Any:
        return reply(plus(arrays, 1.0 + partition), loss=float(partition))

    plain, found, _ = both(lambda: three(Choosing), change, 2, replies="own")
    assert float(to_arrays(plain.arrays)["w"][0]) == 4.0  # two of the three clients
    assert_equal(found, plain)


class Turning(FedAvg):
    """Takes another aggregation in the second round."""

    def configure_train(self, server_round: int, *given: Any) -> Any:
        if server_round == 2:
            median = flower.FedMedian.aggregate_train
            self.aggregate_train = median.__get__(self)  # type: ignore[method-assign]
        return super().configure_train(server_round, *given)


def test_an_aggregation_that_changes_in_mid_run_is_not_given_an_average() -> None:
    with pytest.raises(ValueError, match="aggregate_train of its own"):
        both(lambda: three(Turning), liar, 3)
    plain, found, _ = both(lambda: three(Turning), liar, 3, replies="own")
    assert_equal(found, plain)


def test_the_weight_may_get_another_name_later() -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        return reply(plus(arrays, 1.0 + partition), steps=partition + 1)

    strategy = DarexStrategy(three(), **EXACT)
    strategy.weighted_by_key = "steps"
    found = rounds(strategy, Federation(app(change), CLIENTS), 1, ONE)
    np.testing.assert_allclose(to_arrays(found.arrays)["w"], 1 + 14 / 6, rtol=1e-6)


def test_an_infinite_entry_that_stays_is_no_change() -> None:
    """As in a mask of attention that a module keeps as a buffer."""
    base = ONE | {"mask": np.triu(np.full((4, 4), -np.inf, np.float32), 1)}
    for downlink in ("dense", "update"):
        plain, found, strategy = both(three, step, 2, base=base, downlink=downlink)
        assert strategy.counted == CLIENTS
        assert_equal(found, plain)
    strategy = DarexStrategy(three(), **EXACT)
    found = rounds(strategy, Federation(app(step, mods=False), CLIENTS), 2, base)
    assert_equal(found, plain)


@pytest.mark.parametrize("options", [{"replies": "own"}, {"replies": "support", "mask": "round"}])
def test_an_own_median_is_the_median(options: dict[str, Any]) -> None:
    plain, found, _ = both(lambda: three(OwnMedian), liar, 1, **options)
    assert float(to_arrays(plain.arrays)["w"][0]) == 2.0  # it began at 1
    assert_equal(found, plain)


class Weigher(FedAvg):
    """Leaves out who is far away, weighs by loss, and keeps each node's last model."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last: dict[int, np.ndarray] = {}

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        kept = []
        for one in replies:
            model = to_arrays(one.content["arrays"])["w"]
            self.last[one.metadata.src_node_id] = model
            if abs(model).max() < 500:
                loss = float(one.content["metrics"]["loss"])
                kept.append((model, 1.0 / (1.0 + loss)))
        total = sum(weight for _, weight in kept)
        return to_record({"w": sum(m * (w / total) for m, w in kept)}), MetricRecord()


def test_what_filters_weighs_and_stores_by_node_sees_each_clients_own_arrays() -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        return reply(liar(arrays, partition, round_), loss=float(partition))

    plain, found, strategy = both(lambda: three(Weigher), change, 3, replies="own")
    assert_equal(found, plain)
    # What a client said of round 3 is what it was sent plus its own step, not the mean.
    steps = [float(model[0] - to_arrays(plain.arrays)["w"][0]) for model in strategy.last.values()]
    assert max(steps) > 900.0
    assert len(strategy.last) == CLIENTS


def test_own_arrays_are_right_for_what_is_linear_at_a_high_p() -> None:
    def halves(arrays: Any, partition: int, round_: int) -> Any:
        return plus(arrays, 1.0)

    class Mean(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            models = [to_arrays(r.content["arrays"])["w"] for r in replies if r.has_content()]
            return to_record({"w": np.mean(models, axis=0)}), MetricRecord()

    base = {"w": np.zeros(20_000, np.float32)}
    found = []
    for kind, options in ((FedAvg, {}), (Mean, {"replies": "own"})):
        strategy = DarexStrategy(three(kind), 0.9, seed=3, values="fp32", **options)
        result = rounds(strategy, Federation(app(halves), CLIENTS), 2, base)
        found.append(to_arrays(result.arrays)["w"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert abs(found[1].mean() - 2.0) < 0.1


class Box(Strategy):
    """A wrapper as people write it, with a field called as they like."""

    def __init__(self, inside: Strategy) -> None:
        self.boxed = inside

    def configure_train(self, *given: Any) -> Any:
        return self.boxed.configure_train(*given)

    def aggregate_train(self, *given: Any) -> Any:
        return self.boxed.aggregate_train(*given)

    def configure_evaluate(self, *given: Any) -> Any:
        return self.boxed.configure_evaluate(*given)

    def aggregate_evaluate(self, *given: Any) -> Any:
        return self.boxed.aggregate_evaluate(*given)

    def summary(self) -> None:
        self.boxed.summary()


def test_a_robust_strategy_is_found_inside_any_wrapper() -> None:
    with pytest.raises(ValueError, match="compares clients"):
        DarexStrategy(Box(Box(three(flower.FedMedian))))
    with pytest.raises(ValueError, match="exchanges trees"):
        DarexStrategy(Box(flower.FedXgbBagging()))
    plain, found, _ = both(lambda: Box(three(flower.FedMedian)), liar, 2, mask="round")
    assert float(to_arrays(plain.arrays)["w"][0]) == 3.0
    assert_equal(found, plain)


# --- what was sent is the base ----------------------------------------------------------------


class LookAhead(FedAvg):
    """Sends the model moved on by .9 of its last step."""

    before: Any = None

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        now = to_arrays(arrays)
        last, self.before = self.before or now, now
        ahead = {k: v + np.float32(0.9) * (v - last[k]) for k, v in now.items()}
        return super().configure_train(server_round, to_record(ahead), config, grid)


class Copying(FedAvg):
    """Sends a copy of the record that it was given, a new one in each message."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        for message in super().configure_train(server_round, arrays, config, grid):
            content = RecordDict({"arrays": to_record(to_arrays(arrays))})
            content["config"] = message.content["config"]
            message.content = content
            yield message


class Personal(FedAvg):
    """Sends each node a model of its own, by its place."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        order = list(grid.get_node_ids())
        for message in super().configure_train(server_round, arrays, config, grid):
            place = order.index(message.metadata.dst_node_id)
            message.content = RecordDict(dict(message.content))
            message.content["arrays"] = to_record(plus(to_arrays(arrays), place))
            yield message


def step(arrays: Any, partition: int, round_: int) -> Any:
    return plus(arrays, 1.0 + partition)


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize("kind", [LookAhead, Copying, Personal])
def test_an_update_is_a_change_of_what_that_client_was_sent(kind: Any, downlink: str) -> None:
    options = {"downlink": downlink, "downlink_p": 0.0}
    plain, found, _ = both(lambda: three(kind), step, 4, **options)
    assert_equal(found, plain)


def test_looking_ahead_gives_the_numbers_that_it_gives_without_us() -> None:
    base = {"w": np.zeros(20, np.float32)}
    plain, found, _ = both(lambda: three(LookAhead), lambda a, p, r: plus(a, 1.0), 4, base=base)
    # w + .9 (w - w_prev) with clients that add 1: 1, 2.9, 5.61, 9.049
    assert float(to_arrays(plain.arrays)["w"][0]) == pytest.approx(9.049, abs=1e-4)
    assert_equal(found, plain)


def test_a_copied_record_is_the_same_model_and_costs_no_more(caplog) -> None:
    with listening(caplog):
        sent = []
        for kind in (FedAvg, Copying):
            strategy = DarexStrategy(three(kind), 0.9, values="fp32")
            rounds(strategy, Federation(app(step), CLIENTS), 3, {"w": np.ones(5000, np.float32)})
            sent.append([e.down_bytes for e in strategy.ledger.entries if e.kind == "train"])
    assert sent[0] == sent[1]
    assert "sends another model" not in caplog.text


def test_another_model_for_all_is_said_once(caplog) -> None:
    with listening(caplog):
        both(lambda: three(LookAhead), step, 3)
    said = {id(one) for one in caplog.records if "LookAhead sends another" in one.getMessage()}
    assert len(said) == 1


def test_different_models_cannot_be_compared_nor_added_in_secret() -> None:
    class Both(Personal, flower.FedMedian):
        pass

    with pytest.raises(DeltaError, match="Both sent clients different models"):
        both(lambda: three(Both), step, 2, mask="round")
    secure = SecureAggregation(range=10.0, max_weight=10)
    with pytest.raises(DeltaError, match="secure aggregation adds up changes of one"):
        both(lambda: three(Personal), step, 2, mask="round", secure=secure)


class PersonalJudge(FedAvg):
    """Evaluates each node on a model of its own."""

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        own = to_record(plus(to_arrays(arrays), server_round))
        return super().configure_evaluate(server_round, own, config, grid)


def test_a_personal_model_in_an_evaluation_is_seen_and_spoils_nothing(caplog, tmp_path) -> None:
    def judge(kind: Any) -> FedAvg:
        options = {"fraction_evaluate": 1.0, "min_evaluate_nodes": CLIENTS}
        return three(kind, **options)

    base = {"w": np.ones(5000, np.float32)}
    with listening(caplog):
        plain, found, strategy = both(lambda: judge(PersonalJudge), step, 3, base=base)
    assert_equal(found, plain)
    for round_ in (1, 2, 3):
        ours = found.evaluate_metrics_clientapp[round_]["sum"]
        assert ours == pytest.approx(plain.evaluate_metrics_clientapp[round_]["sum"], rel=1e-5)
    assert "lacks an earlier model" not in caplog.text
    down = [e.down_bytes for e in strategy.ledger.entries if e.kind == "train"]
    first, later = down[:CLIENTS], down[CLIENTS:]
    assert max(later) < 1.1 * min(first)


# --- a start of one's own ---------------------------------------------------------------------


class OwnStart(FedAvg):
    """Stops early, saves what it finds, and takes an argument of its own."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 3, **more: Any) -> Any:
        self.saved: list[float] = []
        self.flag = more.pop("flag", "")
        arrays, result = initial_arrays, flower.Result()
        for round_ in range(1, num_rounds + 1):
            messages = self.configure_train(round_, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(messages, timeout=60)
            arrays, _ = self.aggregate_train(round_, replies)
            self.saved.append(float(to_arrays(arrays)["w"][0]))
            result.arrays = arrays
            if self.saved[-1] > 4.0:
                break
        return result


def test_a_start_of_ones_own_runs_with_our_rounds_in_it() -> None:
    plain, found, strategy = both(lambda: three(OwnStart), step, 9)
    assert_equal(found, plain)
    assert strategy.saved == [3.0, 5.0]
    assert strategy.counted == CLIENTS
    trained = [e for e in strategy.ledger.entries if e.kind == "train"]
    assert len(trained) == 2 * CLIENTS
    grid = Federation(app(step), CLIENTS)
    strategy.start(grid, to_record(ONE), num_rounds=1, flag="own")
    assert strategy.flag == "own"
    assert not {"configure_train", "aggregate_train"} & set(vars(strategy.strategy))


def test_a_start_that_calls_flowers_own_runs_too() -> None:
    class Around(FedAvg):
        ended = 0

        def start(self, *given: Any, **named: Any) -> Any:
            result = super().start(*given, **named)
            self.ended += 1
            return result

    plain, found, strategy = both(lambda: three(Around), step, 2)
    assert_equal(found, plain)
    assert strategy.ended == 1
    assert strategy.counted == CLIENTS


class AtOnce(FedAvg):
    """Lets clients train and evaluate in one go."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 3, **more: Any) -> Any:
        arrays, result = initial_arrays, flower.Result()
        for round_ in range(1, num_rounds + 1):
            given = (round_, arrays, ConfigRecord(), grid)
            messages = [*self.configure_train(*given), *self.configure_evaluate(*given)]
            replies = list(grid.send_and_receive(messages, timeout=60))
            trained = [one for one in replies if one.metadata.message_type == "train"]
            judged = [one for one in replies if one.metadata.message_type != "train"]
            result.arrays, _ = self.aggregate_train(round_, trained)
            result.evaluate_metrics_clientapp[round_] = self.aggregate_evaluate(round_, judged)
            arrays = result.arrays
        return result


def test_an_evaluation_may_be_asked_for_before_the_training_is_answered() -> None:
    options = {"fraction_evaluate": 1.0, "min_evaluate_nodes": CLIENTS}
    plain, found, strategy = both(lambda: three(AtOnce, **options), step, 3)
    assert strategy.counted == CLIENTS
    assert_equal(found, plain)
    for round_, metrics in plain.evaluate_metrics_clientapp.items():
        assert found.evaluate_metrics_clientapp[round_]["sum"] == pytest.approx(metrics["sum"])


def test_attributes_are_those_of_the_strategy_inside() -> None:
    inner = three()
    inner.note = "mine"  # type: ignore[attr-defined]
    strategy = DarexStrategy(inner)
    assert strategy.note == "mine"
    assert strategy.min_train_nodes == CLIENTS
    strategy.min_train_nodes = 2
    strategy.note = "yours"
    assert (inner.min_train_nodes, inner.note) == (2, "yours")  # type: ignore[attr-defined]
    strategy.another = 1  # nobody has it: it is ours
    assert not hasattr(inner, "another")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = strategy.nothing
    q = DarexStrategy(
        flower.QFedAvg(client_learning_rate=0.1, q=0.3), q=0.5, mask="round"
    )  # a name that both have is ours
    assert (q.q, q.strategy.q) == (0.5, 0.3)


# --- structure --------------------------------------------------------------------------------


class Growing(FedAvg):
    """Adds a tensor in round 2, and makes one longer in round 3."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        found = to_arrays(arrays)
        if server_round == 2:
            found["more"] = np.full(4, 7.0, np.float32)
        if server_round == 3:
            found["w"] = np.concatenate([found["w"], found["w"]])
        return to_record(found), metrics


@pytest.mark.parametrize("replies", ["own", "each", "mean"])
@pytest.mark.parametrize("downlink", ["dense", "update"])
def test_a_tensor_that_is_added_or_grows_stays(replies: str, downlink: str) -> None:
    options = {"replies": replies, "downlink": downlink}
    plain, found, _ = both(lambda: three(Growing), step, 5, **options)
    assert {k: v.shape for k, v in to_arrays(found.arrays).items()} == {"w": (40,), "more": (4,)}
    assert_equal(found, plain)


MODEL = {"body": np.ones(40, np.float32), "head": np.zeros(6, np.float32)}


def head_only(arrays: Any, partition: int, round_: int) -> Any:
    return {"head": arrays["head"] + np.float32(partition + 1)}


def as_list(arrays: Any, partition: int, round_: int) -> Any:
    return {str(i): array for i, array in enumerate(plus(arrays, 1.0 + partition).values())}


@pytest.mark.parametrize("change", [head_only, as_list])
def test_replies_of_another_structure_do_what_they_do_in_flower(change: Any, caplog) -> None:
    with listening(caplog):
        plain, found, strategy = both(three, change, 3, base=MODEL)
    assert_equal(found, plain)
    assert "the app answers with other tensors than it was sent" in caplog.text
    assert strategy.counted == CLIENTS
    last = [e for e in strategy.ledger.entries if e.kind == "train"][-1]
    assert last.up_bytes < last.dense_up_bytes + 1000


def test_one_client_with_another_structure_costs_its_reply(caplog) -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        return head_only(arrays, 0, 0) if partition == 1 else plus(arrays, 1.0)

    strategy = DarexStrategy(three(), **EXACT)
    with listening(caplog):
        found = rounds(strategy, Federation(app(change), CLIENTS), 2, MODEL)
    assert strategy.counted == CLIENTS - 1
    assert "client 1 does not count this round: its tensors differ" in caplog.text
    np.testing.assert_allclose(to_arrays(found.arrays)["body"], 3.0, rtol=1e-6)


def test_the_model_in_two_records_ends_the_run_with_what_to_do() -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        records = {name: to_record({name: array}) for name, array in arrays.items()}
        return RecordDict({**records, "metrics": MetricRecord({"num-examples": 1})})

    with pytest.raises(DeltaError, match=r"in this round or any.*which one is the model"):
        rounds(DarexStrategy(three(), **EXACT), Federation(app(change), CLIENTS), 2, MODEL)


def test_a_weight_by_another_name_ends_the_run_with_what_to_do() -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        content = reply(plus(arrays, 1.0))
        content["metrics"] = MetricRecord({"n": 1})
        return content

    with pytest.raises(DeltaError, match=r"in this round or any.*'num-examples'"):
        rounds(DarexStrategy(three(), **EXACT), Federation(app(change), CLIENTS), 2, MODEL)


def test_a_failing_round_later_ends_nothing(caplog) -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        content = reply(plus(arrays, 1.0))
        if round_ == 2:
            content["metrics"] = MetricRecord({"n": 1})
        return content

    strategy = DarexStrategy(three(), **EXACT)
    with listening(caplog):
        found = rounds(strategy, Federation(app(change), CLIENTS), 3, ONE)
    np.testing.assert_allclose(to_arrays(found.arrays)["w"], 3.0)
    assert "round 2: no reply of this round can be used" in caplog.text


def test_a_strategy_that_sends_no_model_at_first_is_given_what_clients_make() -> None:
    class Asking(FedAvg):
        """Lets the clients make the first model."""

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            for message in super().configure_train(server_round, arrays, config, grid):
                if server_round == 1:
                    message.content = RecordDict({"config": message.content["config"]})
                yield message

    def change(arrays: Any, partition: int, round_: int) -> Any:
        return plus(arrays or {"w": np.full(20, 5.0, np.float32)}, 1.0 + partition)

    plain, found, _ = both(lambda: three(Asking), change, 3)
    assert_equal(found, plain)


# --- the round as it was ----------------------------------------------------------------------


class Listening(FedAvg):
    """Keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[int, int]] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        errors = sum(one.has_error() for one in replies)
        self.seen.append((len(replies) - errors, errors))
        return super().aggregate_train(server_round, replies)


def failing(arrays: Any, partition: int, round_: int) -> Any:
    if round_ == 2 or (round_ == 3 and partition == 1):
        raise RuntimeError("no")
    return plus(arrays, 1.0)


@pytest.mark.parametrize("replies", ["own", "each"])
def test_errors_and_empty_rounds_reach_the_strategy(replies: str) -> None:
    plain, found, strategy = both(lambda: three(Listening), failing, 3, replies=replies)
    assert strategy.seen == [(3, 0), (0, 3), (2, 1)]
    assert_equal(found, plain)


def test_a_reply_that_does_not_count_is_an_error_to_the_strategy() -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        content = reply(plus(arrays, 1.0))
        if partition == 0:
            content["metrics"] = MetricRecord({"num-examples": math.nan})
        return content

    strategy = DarexStrategy(three(Listening), replies="each", **EXACT)
    rounds(strategy, Federation(app(change), CLIENTS), 1, ONE)
    assert strategy.seen == [(2, 1)]


def test_a_run_without_training_is_quiet(caplog) -> None:
    quiet = FedAvg(fraction_train=0.0, fraction_evaluate=1.0, min_available_nodes=CLIENTS)
    with listening(caplog):
        strategy = DarexStrategy(quiet, **EXACT)
        found = rounds(strategy, Federation(app(step), CLIENTS), 2, ONE)
    assert found.evaluate_metrics_clientapp[2]["sum"] == pytest.approx(20.0)
    assert "no reply of this round" not in caplog.text
    assert "does not count" not in caplog.text


def extra(content: RecordDict) -> None:
    content.metric_records["metrics"]["more"] = 1.0


def missing(content: RecordDict) -> None:
    del content.metric_records["metrics"]["loss"]


def listed(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = [1.0, 2.0]


def nan(content: RecordDict) -> None:
    content.metric_records["metrics"]["loss"] = math.nan


def unweighted(content: RecordDict) -> None:
    del content.metric_records["metrics"]["num-examples"]


def list_as_weight(content: RecordDict) -> None:
    content.metric_records["metrics"]["num-examples"] = [1.0]


def renamed(content: RecordDict) -> None:
    content["other"] = content.pop("metrics")


def twice(content: RecordDict) -> None:
    content["again"] = MetricRecord({"num-examples": 1, "loss": 0.0})


ODD = [extra, missing, listed, nan, unweighted, list_as_weight, renamed, twice]
STRATEGIES: dict[str, Callable[[], tuple[Strategy, dict[str, Any]]]] = {
    "mean": lambda: (four(), {}),
    "each": lambda: (four(Listening), {"replies": "each"}),
    "own": lambda: (four(Listening), {"replies": "own"}),
    "support": lambda: (four(flower.FedMedian), {"mask": "round"}),
    "qfedavg": lambda: (
        four(flower.QFedAvg, client_learning_rate=0.1, train_loss_key="loss"),
        {"mask": "round"},
    ),
    "dp": lambda: (
        flower.DifferentialPrivacyServerSideFixedClipping(four(), 1e-9, 1e6, 4),
        {},
    ),
}


def four(kind: Any = FedAvg, **options: Any) -> Any:
    return fedavg(kind, 4, fraction_evaluate=1.0, min_evaluate_nodes=4, **options)


@pytest.mark.parametrize("odd", ODD, ids=lambda one: one.__name__)
@pytest.mark.parametrize("form", STRATEGIES)
def test_one_clients_names_or_metrics_cost_its_reply_and_never_the_run(form: str, odd: Any) -> None:
    def change(arrays: Any, partition: int, round_: int) -> Any:
        content = reply(plus(arrays, 1.0), loss=1.0)
        if partition == 3:
            odd(content)
        return content

    made = app(change)

    def call(message: Message, context: Any) -> Message:
        answer = made(message, context)
        evaluated = message.metadata.message_type == "evaluate"
        if evaluated:
            answer.content["metrics"]["loss"] = 1.0
            if context.node_config["partition-id"] == 3:
                odd(answer.content)
        return answer

    inner, options = STRATEGIES[form]()
    strategy = DarexStrategy(inner, **EXACT | options)
    found = rounds(strategy, Federation(call, 4), 2, ONE)
    assert strategy.counted == 3
    if form not in ("qfedavg",):
        np.testing.assert_allclose(to_arrays(found.arrays)["w"], 3.0, atol=1e-2)
    assert found.evaluate_metrics_clientapp[2]["loss"] == pytest.approx(1.0)
    assert all(math.isfinite(value) for value in found.evaluate_metrics_clientapp[2].values())


def test_a_metric_that_is_nan_for_everybody_is_everybodys_own() -> None:
    plain, found, strategy = both(three, lambda a, p, r: reply(plus(a, 1.0), auc=math.nan), 2)
    assert strategy.counted == CLIENTS
    assert_equal(found, plain)


class Exploding(FedAvg):
    """Takes a step that no float32 holds, in round 2."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2:
            arrays = to_record({k: v * np.float32(np.inf) for k, v in to_arrays(arrays).items()})
        return arrays, metrics


def test_no_step_makes_the_model_infinite(caplog) -> None:
    strategy = DarexStrategy(three(Exploding), replies="mean", **EXACT)
    with listening(caplog):
        found = rounds(strategy, Federation(app(lambda a, p, r: plus(a, 1.0)), CLIENTS), 3, ONE)
    np.testing.assert_allclose(to_arrays(found.arrays)["w"], 3.0)
    assert "round 2: the step makes 'w' NaN or infinite; the model stays as it is" in caplog.text


def test_an_evaluation_that_sends_the_model_back_is_said_once(caplog) -> None:
    made = app(step)

    def call(message: Message, context: Any) -> Message:
        answer = made(message, context)
        if message.metadata.message_type == "evaluate":
            answer.content["arrays"] = message.content["arrays"]
        return answer

    strategy = DarexStrategy(three(fraction_evaluate=1.0, min_evaluate_nodes=CLIENTS), **EXACT)
    with listening(caplog):
        rounds(strategy, Federation(call, CLIENTS), 3, ONE)
    said = {one.getMessage() for one in caplog.records if "evaluation carry" in one.getMessage()}
    assert said == {"answers to an evaluation carry 624 bytes of arrays; leave them out in the app"}
