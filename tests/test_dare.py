"""DARE: unbiased, exact, the same in every dtype, and nothing lost between sent and dropped."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.delta import Delta, Layout, as_delta
from fl_darex.errors import DarexError, DeltaError
from fl_darex.masks import ONE, keep_threshold, mask_key
from fl_darex.masks import survivors as positions_of
from fl_darex.positions import SeededMask
from fl_darex.pruning import dare
from fl_darex.rescaling import rescale, resolve_q

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
SKEWED = np.append(np.full(999, 1e-3, dtype=np.float32), np.float32(1.0))
FLOATS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)
DELTAS = st.dictionaries(st.text("abc.", min_size=1, max_size=5), FLOATS, max_size=4)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def gaussian(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the mathematics -------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_q_of_one_minus_p_is_unbiased_on_a_skewed_delta(p):
    draws = 3000
    total = np.zeros(SKEWED.size)
    for seed in range(draws):
        total += dare({"w": SKEWED}, p, seed=seed).rescaled()["w"]
    # An entry is d/q with probability q: variance d^2 (1-q)/q.
    q = keep_threshold(p) / ONE
    error = np.abs(SKEWED) * ((1 - q) / q / draws) ** 0.5
    assert (np.abs(total / draws - SKEWED) <= 5 * error).all()
    # The small entries together have an s.e. sqrt(999) times smaller than each.
    small = (total[:999] / draws).mean()
    assert abs(small - 1e-3) <= 5 * 1e-3 * ((1 - q) / q / draws / 999) ** 0.5


@settings(deadline=None, max_examples=50)
@given(DELTAS, st.floats(0, 0.999), st.floats(1e-3, 1))
def test_survivors_are_the_values_divided_by_exactly_the_given_q(delta, p, q):
    pruned = rescale(dare(delta, p, seed=3), q)
    full = pruned.rescaled()
    for name, values in delta.items():
        expected = np.zeros(values.size, dtype=np.float32)
        kept = pruned.positions[name]
        expected[kept] = values.reshape(-1)[kept] / np.float32(q)
        assert full[name].shape == values.shape
        assert bits(full[name]) == bits(expected)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(max_size=5),
        npst.arrays(np.float32, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)),
        max_size=4,
    )
)
def test_p_of_zero_is_the_identity_bit_for_bit(delta):
    # Any float32 at all: negative zero, subnormal numbers, NaN and infinity.
    full = dare(delta, 0.0, seed=1).rescaled()
    assert set(full) == set(delta)
    for name, values in delta.items():
        assert full[name].shape == values.shape
        assert full[name].view(np.uint32).tolist() == values.view(np.uint32).tolist()


@settings(deadline=None, max_examples=50)
@given(DELTAS, st.floats(0, 0.9999))
def test_sent_and_dropped_make_up_the_whole(delta, p):
    pruned = dare(delta, p, seed=11)
    for name, values in delta.items():
        rest = values.reshape(-1).copy()
        rest[pruned.positions[name]] = 0
        sent = np.zeros_like(rest)
        sent[pruned.positions[name]] = pruned.values[name]
        assert bits(sent + rest) == bits(values.reshape(-1) + np.float32(0))
        assert not (sent.astype(bool) & rest.astype(bool)).any()
    assert pruned.count == sum(where.size for where in pruned.positions.values())


def test_survivors_are_sent_as_they_are_and_q_travels_beside_them():
    pruned = dare({"w": SKEWED}, 0.9, seed=5)
    assert pruned.q == keep_threshold(0.9) / ONE
    assert bits(pruned.values["w"]) == bits(SKEWED[pruned.positions["w"]])
    assert pruned.mask == SeededMask(5, 0, 0, keep_threshold(0.9))


# --- one mask in every dtype -------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_at_p_999_keeps_one_entry_in_a_thousand(device):
    # In bfloat16 arithmetic 1 - .999 and uniform numbers near 0 are rounded; the mask is not.
    numel = 1_000_000
    tensor = torch.ones(numel, dtype=torch.bfloat16, device=device)
    count = dare({"w": tensor}, 0.999, seed=0).count
    assert abs(count - numel * 1e-3) <= 5 * (numel * 1e-3 * 0.999) ** 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.5, 0.99])
def test_positions_are_the_same_in_every_dtype_and_library(p, device):
    source = gaussian((300, 7))
    tensors = [torch.from_numpy(source).to(device, t) for t in (torch.float32, torch.float64)]
    tensors += [torch.from_numpy(source).to(device, t) for t in (torch.float16, torch.bfloat16)]
    arrays = [source.astype(dtype) for dtype in (np.float16, np.float32, np.float64)]
    expected = positions_of(mask_key(9, 4, 2, "w"), source.size, keep_threshold(p)).tolist()
    for tensor in [*tensors, *arrays]:
        pruned = dare({"w": tensor}, p, seed=9, round_=4, slot=2)
        assert pruned.positions["w"].tolist() == expected
        assert pruned.values["w"].dtype == np.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gathering_before_subtracting_is_subtracting_before_gathering(dtype, device):
    tuned = torch.from_numpy(gaussian((50, 40), 1)).to(device, dtype)
    base = torch.from_numpy(gaussian((50, 40), 2)).to(device, dtype)
    # The difference of two halves is exact in float32, and so not rounded to half again.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    whole = (tuned.to(wide) - base.to(wide)).float().cpu().numpy().reshape(-1)
    delta = Delta({"w": tuned}, {"w": base})
    for where in (np.array([0, 5, 1999]), np.arange(2000), np.empty(0, dtype=np.int64)):
        assert bits(delta.take("w", where)) == bits(whole[where])
    assert bits(delta.whole("w")) == bits(whole)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_gathering_before_subtracting_is_subtracting_before_gathering(dtype):
    tuned, base = gaussian((50, 40), 1).astype(dtype), gaussian((50, 40), 2).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    whole = (tuned.astype(wide) - base.astype(wide)).astype(np.float32).reshape(-1)
    where = np.array([0, 5, 1999])
    assert bits(Delta({"w": tuned}, {"w": base}).take("w", where)) == bits(whole[where])
    assert bits(Delta({"w": tuned}, {"w": base}).whole("w")) == bits(whole)


def test_a_torch_client_and_a_numpy_server_agree():
    tuned, base = gaussian((20, 30), 1), gaussian((20, 30), 2)
    one = dare(Delta({"w": torch.from_numpy(tuned)}, {"w": base}), 0.9, seed=1)
    other = dare(Delta({"w": tuned}, {"w": torch.from_numpy(base)}), 0.9, seed=1)
    assert bits(one.values["w"]) == bits(other.values["w"])
    assert one.layout.fingerprint == other.layout.fingerprint


# --- which mask --------------------------------------------------------------------------------


def test_the_order_of_tensors_does_not_matter():
    tensors = {name: gaussian((40, 5), i) for i, name in enumerate(["b", "a", "c.weight", "Z"])}
    one = dare(tensors, 0.8, seed=2)
    other = dare(dict(reversed(tensors.items())), 0.8, seed=2)
    assert one.layout == other.layout
    assert one.layout.fingerprint == other.layout.fingerprint
    assert list(one.positions) == list(other.positions) == sorted(tensors)
    for name in tensors:
        assert bits(one.values[name]) == bits(other.values[name])


def test_other_tensors_of_the_model_do_not_change_a_mask():
    alone = dare({"w": SKEWED}, 0.9, seed=2)
    among = dare({"a": SKEWED, "w": SKEWED, "z": SKEWED}, 0.9, seed=2)
    assert alone.positions["w"].tolist() == among.positions["w"].tolist()


def test_tensors_whose_names_are_anagrams_have_different_masks():
    pruned = dare({name: SKEWED for name in ("listen", "silent", "enlist")}, 0.5, seed=0)
    assert len({where.tobytes() for where in pruned.positions.values()}) == 3


def test_seed_round_and_slot_each_change_the_mask():
    drawn = [
        dare({"w": SKEWED}, 0.5, seed=seed, round_=round_, slot=slot).positions["w"].tobytes()
        for seed, round_, slot in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]
    ]
    assert len(set(drawn)) == 5


def test_a_shared_slot_gives_all_clients_the_same_positions_and_each_its_own_values():
    one = dare({"w": gaussian((500,), 1)}, 0.9, seed=1, slot=-1)
    other = dare({"w": gaussian((500,), 2)}, 0.9, seed=1, slot=-1)
    assert one.positions["w"].tolist() == other.positions["w"].tolist()
    assert bits(one.values["w"]) != bits(other.values["w"])


def test_a_mask_never_depends_on_the_values():
    for values in (np.zeros(1000), np.full(1000, np.nan), -np.arange(1000.0)):
        assert dare({"w": values}, 0.9, seed=1).positions["w"].tolist() == (
            dare({"w": SKEWED}, 0.9, seed=1).positions["w"].tolist()
        )


def test_the_global_random_generators_are_neither_used_nor_changed():
    def states() -> tuple[object, ...]:
        kind, keys, *rest = np.random.get_state()
        return (random.getstate(), kind, keys.tobytes(), rest, torch.get_rng_state().tolist())

    before = states()
    drawn = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        start = states()
        drawn.append(dare({"w": torch.ones(500)}, 0.9, seed=7).positions["w"].tolist())
        assert states() == start
    assert before != start
    assert drawn[0] == drawn[1]


# --- which tensors are pruned --------------------------------------------------------------------


def test_batch_norm_statistics_are_dense_and_its_counter_is_raw():
    norm = torch.nn.BatchNorm1d(6)
    base = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm(torch.from_numpy(gaussian((8, 6))) + 3)
    tuned = norm.state_dict()
    layout = Layout.of(tuned)
    assert [spec.name for spec in layout.pruned] == ["bias", "weight"]
    assert [spec.name for spec in layout.dense] == ["running_mean", "running_var"]
    assert [spec.name for spec in layout.raw] == ["num_batches_tracked"]
    pruned = dare(Delta(tuned, base), 0.99, seed=0)
    for name in ("running_mean", "running_var"):
        assert bits(pruned.dense[name]) == bits((tuned[name] - base[name]).numpy())
        assert bits(pruned.rescaled()[name]) == bits(pruned.dense[name])
    assert pruned.raw["num_batches_tracked"].dtype == np.int64
    assert pruned.raw["num_batches_tracked"].item() == 1


@pytest.mark.parametrize(
    "name",
    [
        *("running_mean", "running_var", "bn.running_var", "a.b.running_mean"),
        *("bn/moving_mean", "model/bn/moving_variance:0", "moving_variance"),
        *("batch_stats.bn.var", "batch_stats/bn/mean", "state.batch_stats.bn.mean"),
    ],
)
def test_running_statistics_are_dense_under_any_prefix(name):
    assert Layout.of({name: np.ones(3)}).dense[0].name == name


@pytest.mark.parametrize(
    "name", ["running_varx", "running_var.weight", "my_running_var", "var", "my_batch_stats.w"]
)
def test_other_names_are_pruned(name):
    assert Layout.of({name: np.ones(3)}).pruned[0].name == name


@pytest.mark.parametrize(
    "values",
    [np.arange(4), np.array([True, False]), np.arange(3, dtype=np.uint8), torch.arange(5)],
)
def test_tensors_that_are_not_floating_point_travel_as_new_values(values):
    pruned = dare(Delta({"buffer": values}, {"buffer": values ^ values}), 0.99, seed=0)
    expected = np.asarray(values)
    assert pruned.layout.raw[0].name == "buffer"
    assert pruned.raw["buffer"].dtype == expected.dtype
    assert pruned.raw["buffer"].tolist() == expected.tolist()
    assert not pruned.positions and not pruned.dense


def test_tensors_that_are_named_dense_are_sent_whole_and_never_divided_by_q():
    delta = Delta({"body": SKEWED, "head": SKEWED}, dense=["head"])
    pruned = rescale(dare(delta, 0.99, seed=0), 0.25)
    assert list(pruned.positions) == ["body"]
    assert bits(pruned.rescaled()["head"]) == bits(SKEWED)


def test_an_integer_tensor_stays_raw_when_it_is_named_dense():
    assert Layout.of({"n": np.arange(3)}, dense=["n"]).raw[0].name == "n"


def test_a_scalar_tensor_is_one_entry_with_shape_nothing():
    kept = [dare({"s": np.float32(2.5)}, 0.5, seed=seed).rescaled()["s"] for seed in range(40)]
    assert all(scalar.shape == () for scalar in kept)
    assert {float(scalar) for scalar in kept} == {0.0, 5.0}


def test_a_scalar_torch_tensor_is_one_entry_with_shape_nothing():
    kept = dare({"s": torch.tensor(2.5)}, 0.0, seed=0).rescaled()["s"]
    assert (kept.shape, float(kept)) == ((), 2.5)


@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_a_raw_scalar_keeps_its_shape(library):
    # BatchNorm's num_batches_tracked; the reader of a packet gives it shape () as well.
    pruned = dare({"n": library(3)}, 0.5, seed=0)
    assert pruned.raw["n"].shape == ()
    assert pruned.rescaled()["n"].shape == ()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("library", [np.zeros, torch.zeros])
@pytest.mark.parametrize("dense", [(), ("w",)])
def test_an_empty_tensor_sends_nothing_and_keeps_its_shape(shape, library, dense):
    pruned = dare(Delta({"w": library(shape)}, {"w": library(shape)}, dense), 0.9, seed=0)
    assert pruned.count == 0
    assert pruned.rescaled()["w"].shape == shape


def test_a_model_without_tensors_sends_nothing():
    pruned = dare({}, 0.9, seed=0)
    assert (pruned.count, pruned.rescaled()) == (0, {})


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_that_are_not_contiguous_are_read_in_their_own_order(device):
    source = torch.from_numpy(gaussian((12, 20))).to(device)
    for tensor in (source.t(), source[::2, 1::3], source.expand(3, 12, 20), source.flip(0)):
        flat = tensor.contiguous().cpu().numpy().reshape(-1)
        pruned = dare(Delta({"w": tensor}, {"w": tensor * 0}, dense=()), 0.5, seed=1)
        assert bits(pruned.values["w"]) == bits(flat[pruned.positions["w"]])
        assert bits(Delta({"w": tensor}).whole("w")) == bits(flat)
    array = gaussian((12, 20))
    for view in (array.T, array[::2, 1::3], np.asfortranarray(array), array[::-1]):
        pruned = dare({"w": view}, 0.5, seed=1)
        flat = view.flatten()
        assert bits(pruned.values["w"]) == bits(flat[pruned.positions["w"]])


def test_parameters_that_require_gradients_are_read_without_a_graph():
    parameter = torch.nn.Parameter(torch.ones(100))
    assert dare({"w": parameter}, 0.5, seed=0).values["w"].tolist() == [1.0] * (
        dare({"w": parameter}, 0.5, seed=0).count
    )


def test_pruning_never_builds_the_delta():
    tuned, base = {"w": np.ones(8_000_000, np.float32)}, {"w": np.zeros(8_000_000, np.float32)}
    dare(Delta({"w": np.ones(9)}), 0.999, seed=0)  # the gap tables are shared and made once
    tracemalloc.start()
    pruned = dare(Delta(tuned, base), 0.999, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pruned.count > 7000
    assert peak < 1_000_000  # the delta would take 32 MB; 8,000 survivors take 100 kB


@pytest.mark.parametrize("dense", [(), ("w",)])
def test_pruning_changes_neither_tensor(dense):
    tuned, base = {"w": gaussian((100,), 1)}, {"w": gaussian((100,), 2)}
    copies = bits(tuned["w"]), bits(base["w"])
    pruned = dare(Delta(tuned, base, dense), 0.0, seed=0)
    for array in (*pruned.values.values(), *pruned.dense.values()):
        array += 1
    assert (bits(tuned["w"]), bits(base["w"])) == copies


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (gaussian((9,)), ()),
        (gaussian((9,)), ("w",)),
        (torch.arange(9), ()),
        (np.arange(9), ()),
    ],
)
def test_survivors_stay_as_they_were_when_training_goes_on(tensor, dense):
    pruned = dare(Delta({"w": tensor}, dense=dense), 0.0, seed=0)
    before = bits(pruned.rescaled()["w"])
    tensor += 1
    assert bits(pruned.rescaled()["w"]) == before


def test_what_was_sent_decides_the_type_of_every_tensor():
    base = {"w": np.ones(4, np.float16), "n": np.arange(3, dtype=np.int32)}
    answer = {"w": np.full(4, 1.5), "n": np.array([0.9, 2.2, 7.0])}  # as trainers do: float64
    pruned = dare(Delta(answer, base), 0.0, seed=0)
    assert pruned.layout == Layout.of(base)
    assert pruned.values["w"].tolist() == [0.5] * 4
    assert (pruned.raw["n"].dtype, pruned.raw["n"].tolist()) == (np.int32, [1, 2, 7])


# --- the layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "dense"),
    [
        ({"w": np.ones((2, 3))}, ()),
        ({"w": np.ones((3, 2), np.float32)}, ()),
        ({"w": np.ones(6, np.float32)}, ()),
        ({"v": np.ones((2, 3), np.float32)}, ()),
        ({"w": np.ones((2, 3), np.float32), "v": np.ones(0)}, ()),
        ({"w": np.ones((2, 3), np.float32)}, ("w",)),
        ({}, ()),
    ],
)
def test_a_fingerprint_depends_on_names_shapes_dtypes_and_roles(other, dense):
    layout = Layout.of({"w": np.ones((2, 3), np.float32)})
    assert Layout.of(other, dense).fingerprint != layout.fingerprint


def test_a_fingerprint_does_not_depend_on_values_or_library():
    prints = {
        Layout.of({"w": w}).fingerprint
        for w in (np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32), torch.ones(2, 3))
    }
    assert len(prints) == 1


def test_a_layout_never_changes():
    layout = Layout.of({"b": np.ones(2, np.float32), "a.running_var": torch.ones(3)})
    assert layout.fingerprint.hex() == "09b8e91570e24351cae80e83e8731068"


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_big_endian_floats_are_floats(dtype):
    layout = Layout.of({"w": np.ones(3, dtype)})
    assert layout == Layout.of({"w": np.ones(3, dtype[1:])})
    pruned = dare({"w": np.arange(3).astype(dtype)}, 0.0, seed=0)
    assert pruned.values["w"].tolist() == [0.0, 1.0, 2.0]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 1.0, -0.1, 2, float("nan")])
def test_p_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got"):
        dare({"w": SKEWED}, p, seed=0)


def test_p_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="use a smaller p"):
        dare({"w": SKEWED}, 1 - 2**-40, seed=0)


@pytest.mark.parametrize(
    ("tuned", "base", "message"),
    [
        ({"a": SKEWED}, {"b": SKEWED}, r"differ in names: \['a', 'b'\]"),
        ({"a": SKEWED, "b": SKEWED}, {"a": SKEWED}, r"differ in names: \['b'\]"),
        ({"a": SKEWED}, {"a": SKEWED, "b": SKEWED}, r"differ in names: \['b'\]"),
        ({"a": SKEWED}, {"a": SKEWED[:5]}, r"'a' has shape \(1000,\), its base \(5,\)"),
        ({"a": np.ones((2, 3))}, {"a": np.ones((3, 2))}, r"shape \(2, 3\), its base \(3, 2\)"),
        ({"a": torch.ones(())}, {"a": torch.ones(1)}, r"shape \(\), its base \(1,\)"),
    ],
)
def test_tensors_that_do_not_fit_their_base_are_refused(tuned, base, message):
    with pytest.raises(DeltaError, match=message):
        Delta(tuned, base)


def test_a_dense_name_that_is_not_there_is_refused():
    with pytest.raises(DeltaError, match=r"dense names no such tensor: \['haed'\]"):
        Delta({"head": SKEWED}, dense=["haed"])


def test_every_error_of_the_delta_can_be_caught_as_one():
    with pytest.raises(DarexError, match="no such tensor"):
        Layout.of({}, dense=["head"])


def test_a_delta_passes_through_as_delta():
    delta = Delta({"w": SKEWED})
    assert as_delta(delta) is delta
    assert isinstance(as_delta({"w": SKEWED}), Delta)


# --- q -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.9, 0.999])
def test_dare_as_q_is_the_exact_keep_rate(p):
    kept = keep_threshold(p)
    assert resolve_q("dare", kept) == kept / ONE
    assert rescale(dare({"w": SKEWED}, p, seed=0), "dare").q == kept / ONE


@pytest.mark.parametrize("q", [1, 1.0, 0.3, 1e-30, np.float64(0.5)])
def test_a_number_as_q_is_itself(q):
    assert resolve_q(q, 5) == q
    assert type(resolve_q(q, 5)) is float


@pytest.mark.parametrize(
    "q", [0, 0.0, -0.5, 1.0000001, 2, float("nan"), float("inf"), True, False, "1", "", "DARE"]
)
def test_q_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match=r"q must be 'dare' \(q = 1-p\) or a number in \(0, 1\]"):
        resolve_q(q, 5)


@pytest.mark.parametrize("q", [None, [0.5], {}])
def test_q_that_is_neither_text_nor_a_number_is_refused(q):
    with pytest.raises(ValueError, match=r"q must be 'dare' \(q = 1-p\) or a number in \(0, 1\]"):
        resolve_q(q, 5)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_q_that_is_0_in_float32_is_refused():
    with pytest.raises(ValueError, match=r"a number in \(0, 1\], got 1e-50"):
        rescale(dare({"w": np.full(5, 1e-20, np.float32)}, 0.0, seed=0), 1e-50)


def test_rescaling_changes_q_and_nothing_else():
    pruned = dare({"w": SKEWED}, 0.9, seed=0)
    other = rescale(pruned, 1.0)
    assert (pruned.q, other.q) == (keep_threshold(0.9) / ONE, 1.0)
    assert other.numbers is pruned.numbers
    assert bits(other.rescaled()["w"][other.positions["w"]]) == bits(pruned.values["w"])


def test_positions_come_from_the_four_numbers_of_the_mask_alone():
    pruned = dare({"b": SKEWED, "a": SKEWED}, 0.9, seed=3, round_=2, slot=1)
    again = SeededMask(3, 2, 1, keep_threshold(0.9)).in_layout(pruned.layout)
    assert {n: w.tolist() for n, w in again.items()} == {
        n: w.tolist() for n, w in pruned.positions.items()
    }
