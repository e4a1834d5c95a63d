"""Small tensors are sent whole, and models that are too small for their p are named."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, fedavg, listening, rounds, run
from hypothesis import given
from hypothesis import strategies as st

from fl_darex.clients import DarexMod
from fl_darex.compression import Uplink
from fl_darex.compression.remarks import remarks
from fl_darex.compression.small import whole_up_to
from fl_darex.delta import Layout
from fl_darex.flower.records import to_arrays
from fl_darex.masks import ONE, keep_threshold
from fl_darex.strategies import DarexStrategy

SIZES = st.lists(st.integers(0, 2000), max_size=30)
KEEPS = st.integers(1, ONE - 1) | st.sampled_from([keep_threshold(p) for p in (0.5, 0.9, 0.99)])


def model(*sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"t{i}": rng.normal(size=n).astype(np.float32) for i, n in enumerate(sizes)}


@given(SIZES, KEEPS)
def test_it_is_the_largest_size_up_to_which_all_tensors_are_few(
    sizes: list[int], keep: int
) -> None:
    most = max(256, 0.05 * sum(sizes) * keep / ONE)
    found = whole_up_to(sizes, keep)
    assert found == 0 or found in sizes
    assert sum(size for size in sizes if size <= found) <= most
    for larger in {size for size in sizes if size > found}:
        assert sum(size for size in sizes if size <= larger) > most


@given(SIZES, KEEPS, st.randoms())
def test_it_depends_neither_on_order_nor_on_empty_tensors(
    sizes: list[int], keep: int, random: Any
) -> None:
    shuffled = [*sizes, 0, 0]
    random.shuffle(shuffled)
    assert whole_up_to(shuffled, keep) == whole_up_to(sizes, keep)


@given(SIZES)
def test_nothing_is_sent_whole_where_nothing_is_dropped(sizes: list[int]) -> None:
    assert whole_up_to(sizes, ONE) == 0


@given(SIZES, st.integers(0, 2000))
def test_a_layout_sends_whole_what_is_not_above_the_size(sizes: list[int], below: int) -> None:
    tensors = model(*sizes) | {"n": np.arange(3)}
    layout = Layout.of(tensors, below=below)
    assert Counter(spec.numel for spec in layout.dense) == Counter(
        size for size in sizes if 0 < size <= below
    )
    assert [spec.name for spec in layout.raw] == ["n"]
    assert (layout == Layout.of(tensors)) == (not layout.dense)


def test_zero_leaves_every_layout_as_it_is() -> None:
    empty = {"none": np.zeros((0, 3), np.float32), "w": np.zeros(3, np.float32)}
    assert Layout.of(empty, below=0) == Layout.of(empty)
    assert [spec.role for spec in Layout.of(empty)] == ["pruned", "pruned"]


def test_a_tensor_that_is_named_dense_does_not_move_the_size_of_the_others() -> None:
    tensors, asked = model(100, 100, 100, 100_000), Uplink.of("dare", 0.9, dense_below="auto")
    named = Uplink.of("dare", 0.9, dense_below="auto", dense=("t0",))
    assert asked.fitted(tensors).dense_below == named.fitted(tensors).dense_below == 100


@pytest.mark.parametrize("below", [-1, 1.5, True, None, "all", "16", 2**63])
def test_a_size_that_is_none_is_refused(below: Any) -> None:
    with pytest.raises(ValueError, match=r"dense_below = .* is not allowed; it must be a number"):
        DarexStrategy(fedavg(), dense_below=below)


def test_fifteen_parameters_all_move() -> None:
    small = {"w": np.zeros((4, 3)), "b": np.zeros(3)}
    found = run(DarexStrategy(fedavg()), 5, base=small)
    assert all(array.all() for array in found.values())
    pruned = run(DarexStrategy(fedavg(), dense_below=0), 5, base=small)
    assert sum(int((array == 0).sum()) for array in pruned.values()) > 7


def test_one_parameter_is_learned_as_without_us() -> None:
    found = run(DarexStrategy(fedavg(), values="fp32"), 3, base={"w": np.ones(1, np.float32)})
    plain = run(fedavg(), 3, mods=[], base={"w": np.ones(1, np.float32)})
    np.testing.assert_allclose(found["w"], plain["w"], rtol=1e-6)


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize("mask", ["client", "round"])
@pytest.mark.parametrize("method", ["dare", "magnitude", "structured"])
def test_the_sizes_are_one_on_both_ends_and_both_ways(
    downlink: str, mask: str, method: str
) -> None:
    if mask == "round" and method == "magnitude":
        return
    app = numpy_app([DarexMod()])
    options: dict[str, Any] = {"columns": 0.2} if method == "structured" else {}
    strategy = DarexStrategy(fedavg(), 0.9, mask=mask, downlink=downlink, method=method, **options)
    grid = Federation(app)
    found = to_arrays(rounds(strategy, grid, 3).arrays)
    assert strategy.counted == 4
    assert (found["layer.bias"] != 0).all()  # 50 entries: whole
    assert (found["layer.weight"] == BASE["layer.weight"]).any() or downlink == "dense"


def said(caplog: pytest.LogCaptureFixture, strategy: DarexStrategy, base: Any) -> list[str]:
    caplog.set_level(logging.WARNING, "flwr")
    with listening(caplog):
        run(strategy, 3, base=base)
    # Each record once, however many loggers pass it on.
    told = {id(record): record.getMessage() for record in caplog.records}
    return [text for text in told.values() if "the model" in text]


def test_a_model_that_is_too_small_for_its_p_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = {"w": np.zeros((4, 3)), "b": np.zeros(3)}
    assert said(caplog, DarexStrategy(fedavg()), base) == [
        "DAREx: the model is too small for p = 0.99: all its 15 entries are sent whole"
    ]
    caplog.clear()
    assert said(caplog, DarexStrategy(fedavg(), dense_below=0), base) == [
        "DAREx: the model is too small for p = 0.99: about 0.15 of 15 entries survive a round, so "
        "that most wait for many (0 are sent whole); lower p, or raise dense_below"
    ]


@pytest.mark.parametrize(
    "uplink",
    [
        Uplink.of("dare", 0.0),
        Uplink.of("dense", 0.9),
        Uplink.of("dare", 0.5, dense_below=50),
    ],
)
def test_nothing_is_said_of_a_model_that_suits_its_p(uplink: Uplink) -> None:
    assert remarks(uplink.layout(BASE), uplink) == []


def test_tensors_with_numbers_for_names_get_a_line_unless_somebody_knows_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = {str(i): np.ones(n, np.float32) for i, n in enumerate((90_000, 500, 500))}
    (text,) = said(caplog, DarexStrategy(fedavg()), base)
    assert text == (
        "DAREx: the model's 3 tensors have numbers for names, which do not tell BatchNorm's "
        "running statistics from weights: send them whole with dense=[...], such as dense=['2']"
    )
    caplog.clear()
    assert said(caplog, DarexStrategy(fedavg(), dense=["2"]), base) == []
