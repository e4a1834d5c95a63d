"""What a strategy says before round 1, held against what the round then takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, fedavg, listening, rounds
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
)
from side_by_side import app, plus, reply

from fl_darex.clients import DarexMod
from fl_darex.compression.downlink import DownlinkPolicy
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy

CLIENTS = 4
MODEL = {
    **{f"layer{i}.weight": np.linspace(-1, i + 1, 90_000, dtype=np.float32) for i in range(3)},
    "bn.running_var": np.ones(300, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"p": 0.9, "values": "int8"},
        {"p": 0.9, "mask": "round"},
        {"p": 0.9, "mask": "disjoint"},
        {"p": 0.6, "mask": "disjoint"},
        {"p": 0.9, "downlink": "server", "downlink_p": 0.98, "downlink_values": "fp32"},
        {"p": 0.9, "downlink": "dense"},
        {"p": 0.9, "method": "magnitude"},
        {"method": "dense"},
        {"p": 0.0, "values": "fp32"},
        {"p": 0.9, "mask": "round", "secure": SecureAggregation(range=0.1, max_weight=10)},
    ],
)
def test_the_bytes_that_are_expected_are_those_that_the_ledger_counts(options: Any) -> None:
    strategy = DarexStrategy(fedavg(clients=CLIENTS), **options)
    found = strategy.check(to_record(MODEL))
    assert found.clients == CLIENTS
    rounds(strategy, Federation(numpy_app([DarexMod()]), CLIENTS), 3, MODEL)
    first, last = ([e for e in strategy.ledger.of_round(r) if e.kind == "train"] for r in (1, 3))
    # The envelope is a round number, survivors are drawn, and magnitudes tie: so about.
    assert found.up_bytes == pytest.approx(np.mean([e.up_bytes for e in last]), rel=0.05, abs=900)
    assert found.first_down_bytes == pytest.approx(first[0].down_bytes, abs=900)
    assert found.down_bytes == pytest.approx(
        np.mean([e.down_bytes for e in last]), rel=0.06, abs=900
    )
    assert found.plain_bytes == pytest.approx(first[0].dense_down_bytes, abs=900)


@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.9},
        {"p": 0.99},
        {"p": 0.9, "mask": "round"},
        {"p": 0.9, "q": 0.3},
        {"p": 0.9, "method": "structured", "columns": 0.5},
    ],
)
def test_the_noise_that_is_expected_is_the_one_of_a_round(options: Any) -> None:
    model = {"w": np.zeros((300, 300), np.float32)}
    strategy = DarexStrategy(fedavg(clients=CLIENTS), values="fp32", **options)
    found = strategy.check(to_record(model))
    ones = app(lambda arrays, *_: reply(plus(arrays, 1.0)))
    after = to_arrays(rounds(strategy, Federation(ones, CLIENTS), 1, model).arrays)["w"]
    q = options.get("q", 1 - options["p"])
    shrunk = (1 - options["p"]) / q  # what a q above 1-p takes from the step is no noise
    noise = np.linalg.norm(after - shrunk) / np.linalg.norm(np.ones_like(after))
    assert found.noise == pytest.approx(noise, rel=0.05)
    assert f"noise of dropping and rounding, a round: {found.noise:.2g} times" in str(found)


@pytest.mark.parametrize(
    "options",
    [{"p": 0.0}, {"method": "dense"}, {"method": "magnitude"}, {"q": "q-v"}],
)
def test_where_nothing_is_dropped_at_random_or_clients_choose_q_no_noise_is_foretold(
    options: Any,
) -> None:
    found = DarexStrategy(FedAvg(), **options).check(to_record(MODEL))
    assert found.noise is None and "noise" not in "".join(found.lines())


def test_what_is_sent_whole_is_named() -> None:
    strategy = DarexStrategy(FedAvg(), dense=["layer0.weight"])
    found = strategy.check(to_record(MODEL))
    assert found.whole == ("bn.running_var", "layer0.weight", "bn.num_batches_tracked")
    assert "tensors sent whole: bn.running_var, layer0.weight, bn.num_batches_tracked" in str(found)
    many = {f"bn{i:02}.running_var": np.ones(3, np.float32) for i in range(12)}
    assert "bn04.running_var and 7 more" in str(DarexStrategy(FedAvg()).check(to_record(many)))


class Own(FedAvg):
    def start(self, *args: Any, **options: Any) -> Any:
        return super().start(*args, **options)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)


def test_what_the_wrapped_strategy_defines_itself_is_named_by_class() -> None:
    assert DarexStrategy(FedAdam()).check(to_record(MODEL)).overrides == ()
    found = DarexStrategy(Own(), replies="each").check(to_record(MODEL))
    assert found.overrides == ("Own.start, aggregate_train",)
    assert "the wrapped strategy's own: Own.start, aggregate_train" in str(found)
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 0.1, 2)
    private.configure_train = private.configure_train  # type: ignore[method-assign]
    found = DarexStrategy(private).check(to_record(MODEL))
    assert found.overrides == ("DifferentialPrivacyServerSideFixedClipping.configure_train",)


NAN = {"w": np.full(300, np.nan, np.float32)}
SUM = SecureAggregation(range=0.1, max_weight=10)


@pytest.mark.parametrize(
    ("inner", "options", "model", "said"),
    [
        (FedAvg, {"dense": ["head"]}, BASE, r"dense names no such tensor: \['head'\]"),
        (FedAvg, {}, {"n": np.array(3)}, "no tensor of this model is pruned"),
        (FedAvg, {}, {"w": np.array(["a"])}, "w"),
        (FedAvg, {}, NAN, "'w' of the initial model holds NaN or infinite values"),
        (FedAvg, {"p": 0.0, "values": "fp32"}, MODEL, "is hardly smaller than the model"),
        (FedAvgM, {}, BASE, "its momentum moves every entry .* take downlink='server'"),
        (
            FedAvg,
            {"p": 0.3, "mask": "disjoint"},
            MODEL,
            "1 masks fit side by side at p = 0.3, and a",
        ),
        (FedAvg, {"mask": "round", "secure": SUM}, BASE, "secure aggregation needs 3 to"),
    ],
)
def test_what_will_not_work_is_said(inner: Any, options: Any, model: Any, said: str) -> None:
    found = DarexStrategy(inner(), **options).check(to_record(model), clients=2)
    assert len([one for one in found.problems if "too small for p" not in one]) == 1
    with pytest.raises(ValueError, match=said):
        raise ValueError(str(found))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"q": "q-v"}, "DarexMod(search=...): q = 'q-v' is theirs to choose"),
        ({"method": "wanda"}, "DarexMod(norms=...): method 'wanda' asks for their inputs' norms"),
    ],
)
def test_what_clients_have_to_be_able_to_do_is_said_and_is_no_problem(
    options: Any, said: str
) -> None:
    found = DarexStrategy(FedAvg(), **options).check(to_record(MODEL))
    assert found.needs == (said,) and found.problems == ()
    assert f"clients need {said}" in str(found)


def test_nothing_is_said_against_a_sound_run_and_nothing_can_be_changed() -> None:
    found = DarexStrategy(FedAvg()).check(to_record(MODEL), clients=10)
    assert found.problems == () and str(found).count("\n") == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.clients = 3  # type: ignore[misc]


@pytest.mark.parametrize(("values", "said"), [("eden4", True), ("eden1", True), ("int4", False)])
def test_running_statistics_beside_few_bits_are_named(values: str, said: bool) -> None:
    found = DarexStrategy(FedAvg(), 0.5, values=values).check(to_record(MODEL)).problems
    assert ["writes running statistics (bn.running_var) in int8" in one for one in found] == (
        [True] * said
    )


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_numbers_for_names_get_a_line_where_few_bits_mix_tensors(p: float) -> None:
    model = {str(at): np.zeros((60, 50 + at), np.float32) for at in range(3)}
    found = DarexStrategy(FedAvg(), p, values="eden2").check(to_record(model)).problems
    assert any("have numbers for names" in one for one in found)


def test_what_an_own_policy_sends_is_not_guessed() -> None:
    class OwnPolicy(DownlinkPolicy):
        name = "test-check-own"
        versions = True

    found = DarexStrategy(FedAvg(), downlink=OwnPolicy()).check(to_record(MODEL))
    assert found.down_bytes is None and "as the policy decides" in str(found)


def test_the_first_round_logs_it_once_for_as_many_clients_as_there_are(caplog: Any) -> None:
    strategy = DarexStrategy(fedavg(FedAvgM, clients=3), p=0.9)
    with listening(caplog), caplog.at_level("INFO", logger="flwr"):
        rounds(strategy, Federation(numpy_app([DarexMod()]), 3), 3)
    lines = {id(one): one.getMessage() for one in caplog.records}
    said = [line.removeprefix("DAREx: ") for line in lines.values() if line.startswith("DAREx: ")]
    found = strategy.check(to_record(BASE), clients=3)
    assert said == [*found.lines(), *found.problems]
    assert "with 3 clients" in said[1] and "FedAvgM" in said[-1]
