"""Tensors without negative entries: what rescaling and rounding make of them is taken back."""

import numpy as np
import pytest
from federations import Federation, listening, rounds
from side_by_side import app, three

from fl_darex.compression.terms import Terms
from fl_darex.compression.uplink import Uplink
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta, Layout
from fl_darex.flower.records import to_arrays
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.nonnegative import keep_nonnegative

N = 500

# How libraries whose names are not known name BatchNorm's mean and variance, or do not.
STATISTICS = {
    "a list": ("2", "3"),
    "paddle": ("bn._mean", "bn._variance"),
    "haiku": ("bn/~/mean_ema.average", "bn/~/var_ema.average"),
    "mxnet": ("bn_moving_avg", "bn_moving_inv_var"),
}


def after_round(before, clients, p=0.9, values="fp16", round_=1, dense=(), q="dare"):
    """One round of packets: the mean, and what was taken back of it."""
    parts, layout = [], Layout.of(before, dense)
    for slot, tuned in enumerate(clients):
        uplink = Uplink.of("dare", p, values=values, dense=dense, q=q)
        terms = Terms(uplink, round_, slot)
        packet, _ = uplink.how.compress(Delta(tuned, before, dense), terms)
        parts.append(Part(uplink.how.open(packet, layout, terms), 1.0))
    mean, _ = weighted_mean(before, layout, parts)
    raw = {name: array.copy() for name, array in mean.items()}
    return raw, mean, keep_nonnegative(before, mean, layout, uplink.divisor, values)


@pytest.mark.parametrize("names", STATISTICS.values(), ids=STATISTICS)
def test_a_variance_by_any_name_stays_nonnegative_and_is_sent_whole_from_then_on(names):
    mean_name, variance = names
    rng, dense = np.random.default_rng(0), ()
    model = {"0": rng.normal(size=N), mean_name: np.zeros(N), variance: np.ones(N)}
    model = {name: array.astype(np.float32) for name, array in model.items()}
    named, known = [], bool(Layout.of(model).dense)  # some are told by their names
    for round_ in range(1, 5):
        clients = [
            {
                "0": model["0"] + rng.normal(size=N).astype(np.float32),
                mean_name: model[mean_name] + rng.normal(size=N).astype(np.float32),
                variance: np.full(N, 0.5, np.float32),
            }
            for _ in range(4)
        ]
        raw, model, found = after_round(model, clients, round_=round_, dense=dense)
        assert (raw[variance] < 0).any() == (round_ == 1 and not known)
        assert (model["0"] == raw["0"]).all() and (model[mean_name] == raw[mean_name]).all()
        named, dense = [*named, *found], (*dense, *found)
        assert model[variance].min() >= 0
    assert named == ([] if known else [variance])
    np.testing.assert_allclose(model[variance], 0.5, atol=2**-10)


def test_the_first_round_ends_between_what_the_server_and_its_clients_hold():
    before = {"variance": np.ones(N, np.float32)}
    _, mean, found = after_round(before, [{"variance": np.full(N, 0.25, np.float32)}], p=0.99)
    assert found == ["variance"]
    assert set(np.unique(mean["variance"])) == {np.float32(0.25), np.float32(1)}


@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_rounding_does_not_make_a_variance_negative(values):
    rng = np.random.default_rng(1)
    before = {"variance": rng.uniform(0.5, 1, N).astype(np.float32)}
    tuned = {"variance": np.full(N, 1e-5, np.float32)}
    for dense in ((), ("variance",)):
        raw, mean, found = after_round(before, [tuned], p=0.5, values=values, dense=dense)
        assert mean["variance"].min() >= 0
        assert found == ["variance"] * (not dense)
        assert dense or raw["variance"].min() < 0


@pytest.mark.parametrize("dense", [(), ("bias",)])
@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "int4", "eden4", "eden1", "sign"])
def test_a_bias_that_starts_at_zero_becomes_negative_where_a_client_says_so(values, dense):
    rng = np.random.default_rng(2)
    before = {"bias": np.zeros(N, np.float32)}
    clients = [{"bias": rng.normal(size=N).astype(np.float32)} for _ in range(4)]
    raw, mean, found = after_round(before, clients, values=values, dense=dense)
    assert not found
    assert (mean["bias"] == raw["bias"]).all() and mean["bias"].min() < 0


@pytest.mark.parametrize("dense", [(), ("bias",)])
@pytest.mark.parametrize("values", ["int4", "eden4", "eden3", "eden2", "eden1", "sign"])
def test_small_negative_entries_beside_large_others_are_not_taken_for_rounding(values, dense):
    before = {"bias": np.zeros(N, np.float32)}
    tuned = np.where(np.arange(N) % 2, 1.0, -0.2).astype(np.float32)
    raw, mean, found = after_round(before, [{"bias": tuned}], p=0, values=values, dense=dense)
    assert not found
    assert (mean["bias"] == raw["bias"]).all() and (raw["bias"] < 0).any()


def test_a_tensor_that_was_negative_before_is_left_alone():
    before = {"w": np.linspace(-0.01, 2, N, dtype=np.float32)}
    raw, mean, found = after_round(before, [{"w": before["w"] * 0.5}])
    assert not found and (mean["w"] == raw["w"]).all() and mean["w"].min() < -0.01


def test_each_tensor_has_its_own_q():
    before = {"a": np.ones(N, np.float32), "b": np.ones(N, np.float32)}
    layout = Layout.of(before)
    mean = {"a": np.full(N, -1, np.float32), "b": np.full(N, -1, np.float32)}
    q = np.array([0.25, 1], np.float32)
    assert keep_nonnegative(before, mean, layout, q) == ["a"]
    assert (mean["a"] == 0.5).all() and (mean["b"] == -1).all()  # at q = 1 it is no rescaling


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_shape_and_type_of_a_tensor_stay(dtype):
    before = {"v": np.ones((2, 3), dtype)}
    mean = {"v": np.full((2, 3), -4, dtype)}
    assert keep_nonnegative(before, mean, Layout.of(before), 0.125) == ["v"]
    assert mean["v"].dtype == dtype and (mean["v"] == np.full((2, 3), 0.375)).all()


def test_empty_tensors_and_counters_are_left_alone():
    before = {"none": np.zeros((0, 3), np.float32), "n": np.zeros((), np.int64)}
    mean = {"none": before["none"], "n": np.array(-1)}
    assert keep_nonnegative(before, mean, Layout.of(before), 0.5) == []
    assert mean["n"] == -1


@pytest.mark.parametrize("names", [("2", "3"), ("avg", "inv_var")])
@pytest.mark.parametrize(
    "options",
    [{}, {"replies": "own"}, {"replies": "support", "mask": "round"}, {"downlink": "server"}],
    ids=str,
)
def test_a_run_keeps_variances_and_says_from_when_on_they_go_whole(names, options, caplog):
    mean_name, variance = names
    rng = np.random.default_rng(0)
    base = {"0": rng.normal(size=N), mean_name: rng.normal(size=N), variance: np.ones(N)}
    base = {name: array.astype(np.float32) for name, array in base.items()}

    def change(arrays, partition, round_):
        assert arrays[variance].min() >= 0  # what a client is sent
        return arrays | {variance: np.full(N, 0.5, np.float32)}

    strategy = DarexStrategy(three(), 0.9, dense_below=0, **options)
    with listening(caplog):
        found = rounds(strategy, Federation(app(change), 3), 4, base)
    np.testing.assert_allclose(to_arrays(found.arrays)[variance], 0.5, atol=2**-9)
    said = {id(one): one.getMessage() for one in caplog.records if "whole now" in one.getMessage()}
    assert len(said) == 1 and variance in next(iter(said.values()))


@pytest.mark.parametrize("downlink", ["update", "server", "dense"])
@pytest.mark.parametrize(
    ("values", "down"), [("eden4", None), ("eden1", None), ("fp16", "eden2"), ("fp16", "int4")]
)
@pytest.mark.parametrize("variance", ["bn.running_var", "v"])
def test_no_rounding_sends_clients_a_variance_that_is_not_above_zero(
    variance, values, down, downlink, caplog
):
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(50, 40)), variance: np.ones(N)}
    base = {name: array.astype(np.float32) for name, array in base.items()}
    goal = rng.permutation(np.geomspace(0.01, 1000, N, dtype=np.float32))

    def change(arrays, partition, round_):
        assert arrays[variance].min() > 0  # what a client is sent
        moved = rng.normal(scale=0.01, size=(50, 40)).astype(np.float32)
        return {"w": arrays["w"] + moved, variance: (arrays[variance] + goal) / 2}

    asked = {"values": values, "downlink_values": down, "downlink": downlink, "dense": [variance]}
    with listening(caplog):
        found = rounds(DarexStrategy(three(), 0.5, **asked), Federation(app(change), 3), 12, base)
    last = to_arrays(found.arrays)[variance]
    assert last.min() > 0 and np.abs(last - goal).max() < 100
    if down == "eden2" and downlink != "dense":
        assert "above it: it is written in 'int8'; with downlink_values = 'int8'" in caplog.text
        assert "the whole model goes" not in caplog.text


@pytest.mark.parametrize(("least", "whole"), [(0.01, False), (1e-6, True)])
@pytest.mark.parametrize("downlink", ["update", "server"])
def test_what_a_policy_has_kept_is_not_lost_where_a_finer_packet_or_the_whole_model_goes(
    downlink, least, whole, caplog
):
    """Part of the weights' step in round 1 is kept; round 2 has variances that few bits lose."""
    base = {"w": np.zeros(2000, np.float32), "v": np.ones(N, np.float32)}
    goal = np.geomspace(least, 1000, N, dtype=np.float32)
    step = np.random.default_rng(0).normal(size=2000).astype(np.float32)

    def change(arrays, partition, round_):
        moved = {"w": arrays["w"] + (step if round_ < 3 else np.sign(step) * np.float32(1e-4))}
        return moved | {"v": goal if round_ == 2 else arrays["v"]}

    asked = {"downlink_values": "eden1", "downlink": downlink, "dense": ["v"]}
    asked |= {"downlink_p": 0.5} if downlink == "server" else {}
    strategy = DarexStrategy(three(), 0, values="fp32", **asked)
    with listening(caplog):
        found = to_arrays(rounds(strategy, Federation(app(change), 3), 40, base).arrays)
    assert "round 2: rounding in 'eden1' would take entries of ['v'] to 0 or below" in caplog.text
    assert "it is written in 'int8'" in caplog.text
    assert ("the whole model goes to all" in caplog.text) == whole
    assert found["v"].min() > 0
    assert np.linalg.norm(found["w"] - 2 * step) < 0.05 * np.linalg.norm(step)
