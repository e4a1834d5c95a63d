"""Strategies as people write them, in plain Flower and inside `DarexStrategy`: the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from side_by_side import CLIENTS, ONE, assert_equal, both, plus, reply, three

from fl_darex.flower.records import to_arrays, to_record


def trained(arrays: Any, partition: int, round_: int) -> RecordDict:
    """A step that depends on the arrays, a loss, and how many steps were taken."""
    moved = {k: v * np.float32(0.9) + np.float32(partition + 1) for k, v in arrays.items()}
    loss = float(sum(np.abs(v).sum() for v in arrays.values()))
    return reply(moved, loss=loss / (partition + 1), tau=partition + 1)


class Nova(FedAvg):
    """Normalised averaging: each client's change over its number of steps (FedNova)."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.now = to_arrays(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        found = [r for r in replies if r.has_content()]
        taus = [float(r.content["metrics"]["tau"]) for r in found]
        models = [to_arrays(r.content["arrays"]) for r in found]
        mean = float(np.mean(taus))
        after = {
            name: now
            + sum(mean / tau * (m[name] - now) for m, tau in zip(models, taus, strict=True))
            / len(taus)
            for name, now in self.now.items()
        }
        return to_record(after), MetricRecord({"tau": mean})


class ByLoss(FedAvg):
    """Weighs clients by their loss, in place of examples."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        for one in replies:
            one.content["metrics"]["num-examples"] = one.content["metrics"]["loss"]
        return super().aggregate_train(server_round, replies)


class Averaged(FedAvg):
    """Answers a running mean of the models, as iterate averaging does."""

    mean: Any = None

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        now = to_arrays(arrays)
        if self.mean is None:
            self.mean = now
        self.mean = {k: 0.7 * self.mean[k] + 0.3 * v for k, v in now.items()}
        return to_record({k: v.astype(np.float32) for k, v in self.mean.items()}), metrics


class Patient(FedAvg):
    """Takes a step in every second round alone."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (None if server_round % 2 else arrays), metrics


class Worst(FedAvg):
    """Asks the two clients with the largest loss of the round before."""

    losses: Any = None

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        messages.sort(key=lambda m: -(self.losses or {}).get(m.metadata.dst_node_id, 0.0))
        return messages[:2] if self.losses else messages

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        self.losses = {
            one.metadata.src_node_id: float(one.content["metrics"]["loss"]) for one in replies
        }
        return super().aggregate_train(server_round, replies)


class Noisy(FedAvg):
    """Adds the same noise to what it sends to everybody (DP by the server)."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        rng = np.random.default_rng(server_round)
        noisy = {
            k: v + rng.normal(size=v.shape).astype(np.float32) for k, v in to_arrays(arrays).items()
        }
        return super().configure_train(server_round, to_record(noisy), config, grid)


class PerClientConfig(FedAvg):
    """Tells each client a learning rate of its own."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        order = list(grid.get_node_ids())
        for message in super().configure_train(server_round, arrays, config, grid):
            own = ConfigRecord(dict(message.content["config"]))
            own["lr"] = 0.1 * (order.index(message.metadata.dst_node_id) + 1)
            message.content = RecordDict({"arrays": message.content["arrays"], "config": own})
            yield message


class Groups(FedAvg):
    """Keeps a model for each of two groups of nodes, and answers their mean."""

    models: Any = None

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.models = self.models or [to_arrays(arrays), plus(to_arrays(arrays), 1.0)]
        self.order = list(grid.get_node_ids())
        for message in super().configure_train(server_round, arrays, config, grid):
            group = self.order.index(message.metadata.dst_node_id) % 2
            record = to_record(self.models[group])
            message.content = RecordDict({"arrays": record, "config": message.content["config"]})
            yield message

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        for group in (0, 1):
            own = [
                to_arrays(r.content["arrays"])
                for r in replies
                if self.order.index(r.metadata.src_node_id) % 2 == group
            ]
            self.models[group] = {k: np.mean([m[k] for m in own], axis=0) for k in own[0]}
        first, second = self.models
        return to_record({k: (first[k] + second[k]) / 2 for k in first}), MetricRecord()


class Layered(FedAvg):
    """Sends a sub-model, every second tensor of a round, and puts the answer back."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.whole = to_arrays(arrays)
        self.part = sorted(self.whole)[server_round % 2 :: 2]
        some = to_record({name: self.whole[name] for name in self.part})
        return super().configure_train(server_round, some, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return to_record(self.whole | to_arrays(arrays)), metrics


class Asking(FedAvg):
    """Asks the clients something before each round, over the grid that it is given."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 0})})
        asked = [Message(content, node, "evaluate") for node in grid.get_node_ids()]
        answers = list(grid.send_and_receive(asked, timeout=60))
        config["sum"] = sum(float(r.content["metrics"]["sum"]) for r in answers)
        return super().configure_train(server_round, arrays, config, grid)


class Controlled(FedAvg):
    """Sends a control variate before the model, equal to it where that begins at zero."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        control = to_record({k: np.zeros_like(v) for k, v in to_arrays(arrays).items()})
        for message in super().configure_train(server_round, arrays, config, grid):
            config = message.content["config"]
            records = {"control": control, "arrays": arrays, "config": config}
            message.content = RecordDict(records)
            yield message

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        models = [to_arrays(r.content["arrays"])["w"] for r in replies if r.has_content()]
        return to_record({"w": np.mean(models, axis=0)}), MetricRecord()


def test_a_record_with_the_same_numbers_is_not_taken_for_the_model() -> None:
    def change(arrays: Any, partition: int, round_: int) -> RecordDict:
        content = reply({"w": np.full(20, partition + round_, np.float32)})
        content["delta"] = to_record({"w": np.ones(20, np.float32)})
        return content

    base = {"w": np.zeros(20, np.float32)}
    plain, found, strategy = both(lambda: three(Controlled), change, 2, base=base, replies="own")
    assert strategy.counted == CLIENTS
    assert_equal(found, plain)


FOUR = {name: np.full(10, i, np.float32) for i, name in enumerate("abcd")}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "normalised": (Nova, {"replies": "own"}),
    "weighed by loss": (ByLoss, {"replies": "own"}),
    "averaged iterates": (Averaged, {"replies": "each"}),
    "a step in every second round": (Patient, {"replies": "each"}),
    "clients by their loss": (Worst, {"replies": "each"}),
    "noise on the way down": (Noisy, {}),
    "settings for each client": (PerClientConfig, {}),
    "groups of nodes": (Groups, {"replies": "own"}),
    "a part of the model": (Layered, {"replies": "each"}),
    "questions of its own": (Asking, {}),
}


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize("case", CASES)
def test_a_strategy_means_what_it_meant(case: str, downlink: str) -> None:
    kind, options = CASES[case]
    base = FOUR if kind is Layered else ONE
    options = options | {"downlink": downlink, "downlink_p": 0.0}
    plain, found, _ = both(lambda: three(kind), trained, 5, base=base, **options)
    assert_equal(found, plain, 1e-4)
    for round_, metrics in plain.train_metrics_clientapp.items():
        ours = found.train_metrics_clientapp[round_]
        assert set(ours) == set(metrics)
        assert all(ours[name] == pytest.approx(metrics[name], rel=1e-3) for name in metrics)


@pytest.mark.parametrize("kind", [flower.FedAdam, flower.FedAvgM, flower.FedYogi])
def test_an_optimizer_that_looks_ahead_keeps_its_own_count(kind: Any) -> None:
    class Ahead(kind):  # type: ignore[misc]
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            messages = super().configure_train(server_round, arrays, config, grid)
            ahead = to_record(plus(to_arrays(arrays), 0.5))
            for message in messages:
                config = message.content["config"]
                message.content = RecordDict({"arrays": ahead, "config": config})
                yield message

    options = {"server_momentum": 0.9} if kind is flower.FedAvgM else {"eta": 0.1}
    plain, found, _ = both(lambda: three(Ahead, **options), trained, 4)
    assert_equal(found, plain, 1e-4)
    assert CLIENTS == 3
