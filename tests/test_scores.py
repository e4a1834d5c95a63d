"""MP and WANDA: exactly k, the right ones, ties in order, nothing silently lost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.masks import keep_threshold
from fl_darex.pruning import magnitude, scores, wanda
from fl_darex.pruning.scores import SCOPES, kept_count
from fl_darex.wire import encode

FLOATS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, -1.0]),
)
DELTAS = st.dictionaries(st.text("abc.", min_size=1, max_size=5), FLOATS, max_size=4)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(scored: dict[str, np.ndarray], p: float, scope: str) -> dict[str, list[int]]:
    """Sort all entries of each group by score, then by tensor and position."""
    groups: dict[tuple, list[tuple]] = {}
    sizes: dict[tuple, int] = {}
    for name in sorted(scored):
        array = scored[name]
        width = array.size // array.shape[0] if array.ndim > 1 and array.size else array.size
        for position, score in enumerate(array.reshape(-1).tolist()):
            group = {"global": (), "layer": (name,), "row": (name, position // max(1, width))}
            key = group[scope]
            sizes[key] = sizes.get(key, 0) + 1
            groups.setdefault(key, [])
            if score > 0:
                groups[key].append((-score, name, position))
    kept: dict[str, list[int]] = {name: [] for name in scored}
    for key, entries in groups.items():
        for _, name, position in sorted(entries)[: kept_count(sizes[key], keep_threshold(p))]:
            kept[name].append(position)
    return {name: sorted(positions) for name, positions in kept.items()}


@settings(deadline=None, max_examples=200)
@given(DELTAS, st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999]), st.sampled_from(SCOPES))
def test_the_largest_changes_survive_as_a_full_sort_says(tensors, p, scope):
    found = magnitude(tensors, p, scope=scope)
    expected = reference({name: np.abs(array) for name, array in tensors.items()}, p, scope)
    assert {name: where.tolist() for name, where in found.positions.items()} == expected
    for name, where in found.positions.items():
        np.testing.assert_array_equal(found.values[name], tensors[name].reshape(-1)[where])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 8), st.sampled_from(["layer", "row"]), st.integers(0, 99))
def test_wanda_weighs_each_column_by_the_norm_of_its_input(rows, columns, scope, seed):
    tensors = {"w": gaussian(rows, columns, seed=seed), "b": gaussian(rows, seed=seed + 1)}
    norms = np.abs(gaussian(columns, seed=seed + 2))
    found = wanda(tensors, 0.5, {"w": norms, "elsewhere": np.ones(2)}, scope=scope)
    scored = {"w": np.abs(tensors["w"]) * norms, "b": np.abs(tensors["b"])}
    assert {n: w.tolist() for n, w in found.positions.items()} == reference(scored, 0.5, scope)


@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
def test_wanda_keeps_exactly_k_where_inputs_are_0_and_everything_at_p_0(scope, p):
    changes = gaussian(10, 20)
    norms = np.where(np.arange(20) < 15, 0.0, 1.0)  # more columns than any p here drops
    found = wanda({"w": changes}, p, {"w": norms}, scope=scope)
    assert found.count == kept_count(200, keep_threshold(p))
    columns = found.positions["w"] % 20
    alive = min(50, found.count)
    assert np.count_nonzero(columns >= 15) == alive, "changes that matter come first"
    if p == 0.0:
        np.testing.assert_array_equal(found.rescaled()["w"], changes)


def test_wanda_sends_no_change_that_is_none_whatever_the_norms():
    changes = np.array([[0.0, 1.0, 0.0, 2.0]], np.float32)
    found = wanda({"w": changes}, 0.0, {"w": np.array([1.0, 0.0, 0.0, 1e-45])})
    assert found.positions["w"].tolist() == [1, 3]


def test_wanda_with_equal_norms_everywhere_is_magnitude():
    tensors = {"w": gaussian(20, 30), "v": gaussian(4, 5)}
    ones = {"w": np.ones(30), "v": np.ones(5)}
    for scope in SCOPES:
        mine = wanda(tensors, 0.9, ones, scope=scope).positions
        theirs = magnitude(tensors, 0.9, scope=scope).positions
        assert {n: w.tolist() for n, w in mine.items()} == {
            n: w.tolist() for n, w in theirs.items()
        }


def test_magnitude_leaves_less_error_than_any_other_choice_of_as_many_entries():
    delta = gaussian(60, 50)
    kept = magnitude({"w": delta}, 0.9, scope="global")
    error = np.square(delta - kept.rescaled()["w"]).sum()
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = np.zeros(delta.size, bool)
        other[rng.choice(delta.size, kept.count, replace=False)] = True
        assert error <= np.square(np.where(other.reshape(delta.shape), 0, delta)).sum()


@pytest.mark.parametrize("scope", SCOPES)
def test_survivors_are_not_rescaled(scope):
    kept = magnitude({"w": gaussian(30, 40)}, 0.9, scope=scope)
    assert kept.q == 1.0 and kept.count == 120
    full = kept.rescaled()["w"].reshape(-1)
    np.testing.assert_array_equal(full[full != 0], kept.numbers)


def test_of_equal_changes_the_first_survive():
    ones = {"b": np.ones((2, 5), np.float32), "a": -np.ones(5, np.float32)}
    assert magnitude(ones, 0.6, scope="global").positions["a"].tolist() == [0, 1, 2, 3, 4]
    assert magnitude(ones, 0.6, scope="layer").positions["b"].tolist() == [0, 1, 2, 3]
    assert magnitude(ones, 0.6, scope="row").positions["b"].tolist() == [0, 1, 5, 6]


def test_rows_are_chosen_alike_however_many_are_looked_at_at_once(monkeypatch):
    tensors = {"w": gaussian(37, 11)}
    whole = magnitude(tensors, 0.7, scope="row").positions["w"]
    monkeypatch.setattr(scores, "_AT_ONCE", 25)
    np.testing.assert_array_equal(magnitude(tensors, 0.7, scope="row").positions["w"], whole)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9999])
def test_odd_tensors_give_neither_nan_nor_an_error(scope, p):
    tied = torch.randn(3, 4, dtype=torch.bfloat16)
    tensors = {
        "empty": torch.zeros(0),
        "empty rows": torch.zeros(3, 0),
        "one": torch.tensor(2.0),
        "steps": torch.tensor(3),
        "tied": tied,
        "unchanged": torch.zeros(5, 5),
        "half": torch.ones(2, 2, dtype=torch.float16),
    }
    found = magnitude(Delta(tensors), p, scope=scope)
    assert all(np.isfinite(values).all() for values in found.values.values())
    assert found.positions["unchanged"].size == found.positions["empty"].size == 0
    if p == 0.0:
        assert found.positions["tied"].size == np.count_nonzero(tied.float().numpy())


@pytest.mark.parametrize("scope", SCOPES)
def test_a_diverged_update_is_refused_and_not_quietly_left_out(scope):
    delta = gaussian(5, 4)
    delta[2, 1] = np.nan
    with pytest.raises(DeltaError, match="training has diverged"):
        encode(magnitude({"w": delta}, 0.5, scope=scope))


def test_one_tensor_is_looked_at_at_a_time():
    base = {f"w{i}": np.zeros((256, 512), np.float32) for i in range(24)}
    tuned = {name: gaussian(256, 512, seed=i) for i, name in enumerate(base)}
    everything = 24 * 256 * 512 * 4
    for scope in SCOPES:
        tracemalloc.start()
        magnitude(Delta(tuned, base), 0.99, scope=scope)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < everything / 3


def test_what_cannot_be_meant_is_refused_in_words():
    tensors = {"w": gaussian(2, 3), "b": gaussian(2)}
    with pytest.raises(ValueError, match=r"scope must be one of .* did you mean 'layer'\?"):
        magnitude(tensors, 0.5, scope="layers")
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
        magnitude(tensors, 1.0)
    with pytest.raises(ValueError, match=r"norms\['w'\] has shape \(2,\); .* needs \(3,\)"):
        wanda(tensors, 0.5, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="needs none"):
        wanda(tensors, 0.5, {"b": np.ones(2)})
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        wanda(tensors, 0.5, {"w": np.array([1, np.nan, 2])})
    with pytest.raises(ValueError, match=r"norms has none of \['b'\]; use 'layer'"):
        wanda(tensors, 0.5, {"w": np.ones(3)}, scope="global")
