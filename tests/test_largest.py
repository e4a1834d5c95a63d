"""The largest magnitudes: exactly as many as asked for, and ties in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.pruning import largest as module
from fl_darex.pruning.largest import largest

SHAPES = npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=20)
SINGLES = npst.arrays(
    np.float32,
    SHAPES,
    elements=st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 3e38]),
)
DOUBLES = npst.arrays(
    np.float64,
    SHAPES,
    elements=st.floats(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, 1 + 2**-52, 5e-324, 1e300]),
)
MANY = st.one_of(*(st.dictionaries(st.text(max_size=2), a, max_size=4) for a in (SINGLES, DOUBLES)))


def reference(tensors: dict[str, np.ndarray], count: int) -> dict[str, list[int]]:
    """Sort everything by magnitude, then by tensor and position."""
    entries = [
        (-abs(float(value)), index, position)
        for index, tensor in enumerate(tensors.values())
        for position, value in enumerate(tensor.reshape(-1))
        if value != 0
    ]
    kept: dict[str, list[int]] = {name: [] for name in tensors}
    names = list(tensors)
    for _, index, position in sorted(entries)[:count]:
        kept[names[index]].append(position)
    return {name: sorted(positions) for name, positions in kept.items()}


@settings(deadline=None, max_examples=300)
@given(MANY, st.integers(0, 500), st.booleans())
def test_the_largest_are_those_of_a_full_sort(tensors, count, small_pieces):
    with pytest.MonkeyPatch.context() as patch:
        if small_pieces:
            patch.setattr(module, "_AT_ONCE", 7)
        found = largest(tensors, count)
    assert {n: w.tolist() for n, w in found.items()} == reference(tensors, count)
    assert all(where.dtype == np.int64 for where in found.values())


def test_ties_survive_in_order():
    tensors = {"a": np.ones(5, np.float32), "b": -np.ones(5, np.float32)}
    found = largest(tensors, 7)
    assert found["a"].tolist() == [0, 1, 2, 3, 4] and found["b"].tolist() == [0, 1]


def test_zeros_never_survive():
    tensors = {"a": np.float32([0, 3, 0, -0.0, 2]), "b": np.zeros(4, np.float32)}
    assert {n: w.tolist() for n, w in largest(tensors, 9).items()} == {"a": [1, 4], "b": []}


def test_neighbouring_magnitudes_are_told_apart():
    ascending = np.cumsum(np.ones(1000, np.uint32)) + np.float32(1).view(np.uint32)
    values = ascending.astype(np.uint32).view(np.float32)
    assert largest({"w": values}, 10)["w"].tolist() == list(range(990, 1000))


@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f2", "f2"), ("i4", "i4")])
def test_tensors_of_other_types_or_of_two_are_refused(kinds):
    tensors = {kind + str(i): np.ones(3, kind) for i, kind in enumerate(kinds)}
    with pytest.raises(TypeError, match="all must be float32, or all float64"):
        largest(tensors, 2)


@pytest.mark.parametrize("count", [0, 1, 100_000, 3_000_000])
def test_a_large_tensor_keeps_exactly_that_many(count):
    values = np.random.default_rng(0).normal(size=3_000_000).astype(np.float32)
    found = largest({"w": values}, count)["w"]
    assert found.size == count
    if count:
        dropped = np.ones(values.size, bool)
        dropped[found] = False
        assert np.abs(values[found]).min() >= np.abs(values[dropped]).max(initial=0)
