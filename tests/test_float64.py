"""Models in float64, such as scikit-learn's: with values "fp64" they keep float64's steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from federations import Federation, fedavg, listening, rounds
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, Krum
from papers import NEEDS
from side_by_side import app, assert_equal, both, three

from fl_darex.clients import DarexMod
from fl_darex.compression import METHODS, NOTHING, SparseUpdate, Terms, Uplink
from fl_darex.compression.method import left_over, with_left_over
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta, Layout
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.pruning import dare, magnitude, wanda
from fl_darex.rescaling import RescaledModel, rescale
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy
from fl_darex.wire import encode
from fl_darex.wire.reader import read_packet

RNG = np.random.default_rng(0)
MODEL = {
    "coef": RNG.normal(size=(30, 40)),
    "intercept": RNG.normal(size=3),
    "scale.running_var": RNG.uniform(0.5, 1, size=30),
}
CLIENTS = 3


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))


def learn(arrays: dict[str, np.ndarray], partition: int, round_: int) -> dict[str, np.ndarray]:
    """One step of some training in float64, another one for each client and round."""
    rng = np.random.default_rng([partition, round_])
    return {
        name: array + (0.1 * rng.uniform(0.5, 1, size=array.shape)).astype(array.dtype)
        for name, array in arrays.items()
    }


# --- p = 0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize("mask", ["client", "round"])
def test_a_float64_model_equals_plain_flower_to_float64_round_off(mask: str, downlink: str) -> None:
    options: dict[str, Any] = dict(values="fp64", mask=mask, downlink=downlink, base=MODEL)
    plain, found, _ = both(three, learn, **options)
    assert all(array.dtype == MODEL[name].dtype for name, array in to_arrays(found.arrays).items())
    assert_equal(found, plain, 2e-15)


def test_fp32_values_do_not() -> None:
    plain, found, _ = both(three, learn, base=MODEL)
    with pytest.raises(AssertionError):
        assert_equal(found, plain, 1e-11)


@pytest.mark.parametrize("kind", [FedAvgM, FedAdam, FedAdagrad, FedMedian, Krum])
def test_other_strategies_equal_plain_flower_on_a_float64_model(kind: Any) -> None:
    more = {"server_learning_rate": 1.0, "server_momentum": 0.5} if kind is FedAvgM else {}
    options: dict[str, Any] = dict(values="fp64", mask="round", base=MODEL)
    plain, found, _ = both(partial(fedavg, kind, 5, **more), learn, clients=5, **options)
    # Adam's step divides by roots of small numbers.
    assert_equal(found, plain, 1e-12 if kind in (FedAdam, FedAdagrad) else 3e-15)


def test_steps_far_below_float32s_are_learned() -> None:
    # 1 + 1e-12 is 1 in float32; and a change of 1e-60 is 0 there.
    start = {"w": np.array([1.0, 0.0])}
    change = lambda arrays, *_: {"w": arrays["w"] + np.array([1e-12, 1e-60])}  # noqa: E731
    plain, found, _ = both(three, change, values="fp64", base=start)
    one, other = to_arrays(found.arrays)["w"], to_arrays(plain.arrays)["w"]
    np.testing.assert_allclose(one, other, rtol=1e-15, atol=0)
    assert (to_arrays(found.arrays)["w"] > start["w"]).all()


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
def test_numbers_beyond_float32_arrive_in_fp64(downlink: str) -> None:
    change = lambda arrays, *_: {"w": arrays["w"] + 1e300}  # noqa: E731
    base = {"w": np.zeros(20)}
    plain, found, strategy = both(three, change, values="fp64", downlink=downlink, base=base)
    assert strategy.counted == CLIENTS
    np.testing.assert_allclose(
        to_arrays(found.arrays)["w"], to_arrays(plain.arrays)["w"], rtol=1e-15, atol=0
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize(
    ("values", "dtype", "said"),
    [("fp32", "f8", "NaN or infinite values"), ("fp64", "f4", "infinite in float32 once divided")],
)
def test_they_cost_the_reply_in_fp32_and_where_the_model_is_float32(
    values: str, dtype: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def change(arrays: dict[str, np.ndarray], partition: int, _: int) -> dict[str, np.ndarray]:
        return {"w": arrays["w"].astype("f8") + (1e300 if partition == 2 else 1)}

    strategy = DarexStrategy(three(), 0, values=values)
    with listening(caplog):
        found = rounds(strategy, Federation(app(change), CLIENTS), 1, {"w": np.zeros(9, dtype)})
    assert strategy.counted == CLIENTS - 1
    assert (to_arrays(found.arrays)["w"] == 1).all()
    assert said in caplog.text


# --- p > 0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_survivors_are_divided_by_q_and_averaged_in_float64(shared: bool, per_tensor: bool) -> None:
    before = {"a": RNG.normal(size=300), "b": RNG.normal(size=500)}
    layout, parts, wanted = Layout.of(before), [], {n: a.copy() for n, a in before.items()}
    q: Any = np.float32([0.3, 0.7]) if per_tensor else 0.3
    for slot in range(3):
        tuned = {name: array + RNG.normal(size=array.size) for name, array in before.items()}
        kept = dare(Delta(tuned, before, dtype="f8"), 0.7, seed=1, slot=-1 if shared else slot)
        packet = read_packet(encode(replace(kept, q=q), "fp64"), layout)
        update = SparseUpdate.of_packet(packet)
        parts.append(Part(update, slot + 1.0))
        alone = update.values(before)
        for index, (name, positions) in enumerate(kept.positions.items()):
            change = (tuned[name] - before[name])[positions]
            assert packet.survivors().values[name].tolist() == change.tolist()  # every bit
            step = change / float(q[index] if per_tensor else q)
            assert (alone[name][positions] == before[name][positions] + step).all()
            wanted[name][positions] += step * (slot + 1) / 6
    mean, odd = weighted_mean(before, layout, parts)
    assert mean is not None and not odd
    for name, array in wanted.items():
        np.testing.assert_allclose(mean[name], array, rtol=0, atol=1e-14)


FLOATS = [name for name in METHODS if name != "dense" and "values" not in NEEDS.get(name, {})]


@pytest.mark.parametrize("method", FLOATS)
def test_every_method_trains_a_float64_model_with_fp64_packets(method: str) -> None:
    mod = DarexMod(norms=lambda message, context: {"coef": np.ones(40)})
    made = app(learn, mods=False)
    made._mods = [mod]
    options: dict[str, Any] = {"columns": 0.5} if method == "structured" else {}
    options |= {"p": 0.5} | NEEDS.get(method, {})
    strategy = DarexStrategy(three(), values="fp64", method=method, **options)
    found = to_arrays(rounds(strategy, Federation(made, CLIENTS), 2, MODEL).arrays)
    assert strategy.counted == CLIENTS
    assert found["coef"].dtype == np.float64
    assert (found["coef"] != MODEL["coef"]).any()


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
def test_magnitudes_are_compared_in_float64_and_changes_below_float32_are_changes(
    scope: Any,
) -> None:
    # The same number in float32, and two that are 0 there.
    change = np.array([[1.0, 1 + 1e-12, 1 - 1e-12, 1e-80, 0.0, -1e-90]])
    delta = Delta({"w": change}, dtype="f8")
    assert magnitude(delta, 5 / 6, scope=scope).positions["w"].tolist() == [1]
    assert magnitude(delta, 1 / 6, scope=scope).positions["w"].tolist() == [0, 1, 2, 3, 5]
    norms = {"w": np.float32([1, 1, 1, 1e-30, 1, 0])}
    assert wanda(delta, 5 / 6, norms, scope=scope).positions["w"].tolist() == [1]
    # An input that was always 0: its change comes last, and is still one.
    assert wanda(delta, 1 / 6, norms, scope=scope).positions["w"].tolist() == [0, 1, 2, 3, 5]


def test_what_is_left_over_and_what_is_sent_are_all_there_was_in_float64() -> None:
    change = {"w": RNG.normal(size=500), "head": RNG.normal(size=5)}
    delta = Delta(change, dense=["head"], dtype="f8")
    # Of a run that wrote fp32 before: the state is taken over.
    kept = with_left_over(delta, {"w": np.full(500, 0.5, np.float32)})
    assert kept["w"].dtype == np.float64
    assert (kept["w"] == change["w"] + 0.5).all()
    total = {name: array.copy() for name, array in kept.items()}
    packet = encode(magnitude(delta, 0.9), "fp64")
    left = left_over(kept, packet, delta.layout)
    sent = read_packet(packet, delta.layout).survivors().rescaled()
    for name, array in total.items():
        np.testing.assert_allclose(left[name] + sent[name], array, rtol=0, atol=1e-15)
    # And the other way round.
    back = with_left_over(Delta(change, dense=["head"]), {"w": left["w"]})
    assert {array.dtype.name for array in back.values()} == {"float32"}


def test_a_searched_model_holds_the_bits_that_an_fp64_packet_makes() -> None:
    for dtype in (torch.float32, torch.float64):
        start = {"w": torch.from_numpy(RNG.normal(size=400)).to(dtype)}
        tuned = {"w": start["w"] + torch.from_numpy(RNG.normal(size=400)).to(dtype)}
        base = {"w": start["w"].numpy().copy()}
        kept = dare(Delta(tuned, start, dtype="f8"), 0.5, seed=0)
        model = {"w": start["w"].clone()}
        with RescaledModel(model, kept) as moved:
            moved.set(0.3)
            held = model["w"].numpy().copy()
            slope = moved.parts[0].slope(torch.ones(400, dtype=dtype))
        packet = read_packet(encode(rescale(kept, 0.3), "fp64"), kept.layout)
        assert SparseUpdate.of_packet(packet).values(base)["w"].tobytes() == held.tobytes()
        assert float(slope) == pytest.approx(kept.numbers.sum(), abs=1e-3)


# --- what is said -------------------------------------------------------------------------------

KEEPS = "float64, and changes travel in float32's steps: values 'fp64' keeps float64's"
NOTHING_GAINED = "no tensor is float64: values 'fp64' says what 'fp32' says in half the bytes"
NARROW = {"w": np.zeros(90, np.float32)}


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (MODEL, {"values": "fp32", "p": 0.0}, f"'coef' and 2 more are {KEEPS}, for twice the "),
        (MODEL, {"values": "fp32", "p": 0.5}, KEEPS),
        ({"w": np.zeros(90)}, {"values": "fp32", "p": 0.0}, f"'w' is {KEEPS}"),
        (MODEL, {"values": "fp64", "p": 0.0}, ""),
        (MODEL, {"values": "fp16", "p": 0.5}, ""),
        (MODEL, {"method": "dense", "values": "fp32"}, ""),
        (NARROW, {"values": "fp64", "p": 0.0}, NOTHING_GAINED),
        (NARROW, {"values": "fp32", "p": 0.0}, ""),
    ],
)
def test_a_coding_that_does_not_fit_the_models_type_is_named(
    model: Any, options: dict[str, Any], said: str
) -> None:
    problems = DarexStrategy(FedAvg(), **options).check(to_record(model)).problems
    found = [one for one in problems if "float64" in one]
    assert len(found) == bool(said) and all(said in one for one in found), problems


def test_the_first_round_says_so_and_a_float32_model_learns_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "flwr")
    with listening(caplog):
        plain, found, _ = both(three, learn, values="fp64", base=NARROW)
    assert f"DAREx: {NOTHING_GAINED}" in caplog.text
    assert to_arrays(found.arrays)["w"].dtype == np.float32
    assert_equal(found, plain, 1e-6)


def test_secure_aggregation_takes_its_integers_and_the_way_down_is_fp64(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = SecureAggregation(range=0.2, dense_range=0.2, max_weight=1, bits=24)
    strategy = DarexStrategy(
        fedavg(clients=4), 0, values="fp64", mask="round", secure=asked, clip=None
    )
    caplog.set_level(logging.WARNING, "flwr")
    with listening(caplog):
        found = rounds(strategy, Federation(app(learn), 4), 2, MODEL)
        plain = rounds(fedavg(clients=4), Federation(app(learn, False), 4), 2, MODEL)
    assert strategy.counted == 4
    assert_equal(found, plain, 1e-6)
    assert "float64" not in caplog.text


# --- a tensor without a negative entry ----------------------------------------------------------


def test_a_negative_entry_of_1e_9_is_a_clients_word_in_fp64_and_round_off_in_fp32() -> None:
    def change(arrays: dict[str, np.ndarray], *_: int) -> dict[str, np.ndarray]:
        return {"w": np.append(np.ones(49), -1e-9)}

    base = {"w": np.append(np.zeros(49), 1.0)}
    plain, found, _ = both(three, change, 1, values="fp64", base=base)
    assert to_arrays(plain.arrays)["w"][-1] == pytest.approx(-1e-9)
    assert_equal(found, plain, 1e-15)
    _, rounded, _ = both(three, change, 1, values="fp32", base=base)
    assert to_arrays(rounded.arrays)["w"][-1] == 0


# --- numbers of a float32 model -----------------------------------------------------------------


def test_the_numbers_of_a_float32_model_are_float32_widened() -> None:
    before = {"w": RNG.normal(size=90).astype(np.float32)}
    tuned = {"w": before["w"] + np.float32(0.1)}
    wide, narrow = (dare(Delta(tuned, before, dtype=kind), 0.5, seed=0) for kind in ("f8", "f4"))
    assert (wide.numbers.dtype, narrow.numbers.dtype) == (np.float64, np.float32)
    assert (wide.numbers == narrow.numbers).all()


def test_terms_that_ask_for_fp64_make_a_client_send_it() -> None:
    terms = Terms(Uplink.of("dare", 0.5, values="fp64"), 1, 0)
    before, tuned = {"w": np.zeros(90)}, {"w": np.full(90, 1 / 3)}
    delta = Delta(tuned, before, dtype=terms.uplink.dtype)
    packet, _ = METHODS["dare"].compress(delta, terms, NOTHING)
    assert packet is not None and packet[7] == 6
    update = METHODS["dare"].open(packet, delta.layout, terms)
    assert set(update.numbers(0, update.count).tolist()) == {1 / 3}
    assert set(update.values(before)["w"].tolist()) == {0.0, 2 / 3}
