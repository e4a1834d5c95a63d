"""``q = "group-server-validation"``: the server chooses a q for each group of layers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import BASE
from federations import fedavg, listening, run

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.delta import Layout
from fl_darex.masks import ONE, keep_threshold
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.server_app import make_app
from fl_darex.strategies.server_q import choose_q, groups_of

FIRST = keep_threshold(0.9) / ONE
NAMES = ["embed.weight", "layers.0.bias", "layers.0.weight", "layers.1.weight", "head.weight"]
LENGTHS = {"embed": 1.0, "layers.0": 0.5, "layers.1": 0.25, "head": 0.1}


class Valley:
    """A loss that is smallest where each tensor went its own part of the step."""

    def __init__(self, step: Mapping[str, np.ndarray], parts: Mapping[str, float]) -> None:
        self._goal = {name: parts[name] * array for name, array in step.items()}
        self.seen: list[float] = []

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> float:
        self.seen.append(
            sum(float(np.square(arrays[name] - goal).sum()) for name, goal in self._goal.items())
        )
        return self.seen[-1]


def model() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
    rng = np.random.default_rng(4)
    step = {name: rng.normal(size=(4, 5)) for name in sorted(NAMES)}
    return {n: np.zeros_like(a) for n, a in step.items()}, step, parts_of(step)


def parts_of(names: Mapping[str, Any]) -> dict[str, float]:
    return {name: next(v for k, v in LENGTHS.items() if name.startswith(k)) for name in names}


def test_each_group_takes_the_length_that_suits_it() -> None:
    base, step, parts = model()
    mean = {name: array.copy() for name, array in step.items()}
    loss = Valley(step, parts)
    found = choose_q(loss, base, mean, Layout.of(base), FIRST, grouped=True)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    for q, (name, part) in zip(found, parts.items(), strict=True):
        # Candidates lie 26 % apart, and the best is the nearest on one side.
        assert part / 1.27 < FIRST / q < part * 1.27
        np.testing.assert_allclose(mean[name], step[name] * FIRST / q, rtol=1e-6)
    assert len(loss.seen) <= 7 * (1 + 4)
    one = choose_q(
        Valley(step, parts), base, {n: a.copy() for n, a in step.items()}, Layout.of(base), FIRST
    )
    assert isinstance(one, float) and found.min() < one < found.max()


@pytest.mark.parametrize("seed", range(30))
def test_the_loss_is_never_larger_than_that_of_one_q_for_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, step, _ = model()

    def rough(arrays: Mapping[str, np.ndarray]) -> float:
        """Jumps about, is not finite now and then, and is the same for the same model."""
        bits = zlib.crc32(b"".join(array.tobytes() for array in arrays.values()))
        drawn = np.random.default_rng([seed, bits]).random()
        return float("nan") if drawn < 0.2 else drawn

    first = float(rng.choice([FIRST, 0.5, 0.9, 1e-3]))
    ends = []
    for grouped in (False, True):
        mean = {name: array.copy() for name, array in step.items()}
        choose_q(rough, base, mean, Layout.of(base), first, grouped)
        ends.append(rough(mean))
    assert ends[1] <= ends[0]


def test_a_group_whose_length_does_not_matter_keeps_that_of_all() -> None:
    base, step, parts = model()
    only = {name: array for name, array in step.items() if name.startswith("layers.1")}
    found = choose_q(Valley(only, parts), base, dict(step), Layout.of(base), FIRST, grouped=True)
    assert isinstance(found, np.ndarray) and np.unique(found).size == 1


def test_without_a_finite_loss_the_step_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    base, step, _ = model()
    mean = {name: array.copy() for name, array in step.items()}
    with listening(caplog):
        q = choose_q(lambda arrays: np.inf, base, mean, Layout.of(base), FIRST, grouped=True)
    assert q == FIRST and "not finite for any q" in caplog.text
    assert all(np.allclose(mean[name], step[name]) for name in mean)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_loss_that_is_the_same_for_all_lengths_leaves_the_step_as_it_is(grouped: bool) -> None:
    base, step, _ = model()
    mean = {name: array.copy() for name, array in step.items()}
    found = choose_q(lambda arrays: 0.25, base, mean, Layout.of(base), FIRST, grouped)
    assert np.all(np.asarray(found) == np.float32(FIRST)) or found == FIRST
    for name in mean:
        np.testing.assert_allclose(mean[name], step[name], rtol=1e-6)


def test_an_error_of_a_loss_of_ones_own_is_its_own() -> None:
    def loss(arrays: Mapping[str, np.ndarray]) -> float:
        raise ValueError("the labels have another shape")

    strategy = DarexStrategy(fedavg(), 0.9, q="server-validation", validate=loss)
    with pytest.raises(ValueError, match="the labels have another shape"):
        run(strategy)


@pytest.mark.parametrize("loss", [None, "0.5", [0.5, 0.4], np.ones(2)])
def test_a_loss_that_is_no_number_is_named(loss: Any) -> None:
    strategy = DarexStrategy(fedavg(), 0.9, q="server-validation", validate=lambda arrays: loss)
    with pytest.raises(TypeError, match="validate must return the loss, a number, got "):
        run(strategy)


@pytest.mark.parametrize("names", [[], ["fc.weight", "fc.bias"]])
def test_fewer_than_two_groups_have_one_q(names: list[str]) -> None:
    step = {name: np.ones(3) for name in names}
    base = {name: np.zeros(3) for name in names}
    loss = Valley(step, dict.fromkeys(names, 0.3))
    q = choose_q(loss, base, dict(step), Layout.of(base), FIRST, grouped=True)
    assert isinstance(q, float) and len(loss.seen) <= 7


# --- groups -----------------------------------------------------------------------------------


def test_blocks_are_told_by_their_first_number_and_all_else_by_its_module() -> None:
    names = [
        *("bert.embeddings.word.weight", "bert.pooler.weight", "classifier.bias", "fc1.weight"),
        *("bert.encoder.layer.0.a", "bert.encoder.layer.10.a", "bert.encoder.layer.2.experts.1.w"),
        *("bert.decoder.layer.0.a", "wav2vec2.layers.3.b", "layer1.0.conv1.weight", "0", "11"),
        *("params/blocks/3/kernel", "params/embed/kernel", "layers.7"),
    ]
    groups = groups_of(names)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert ["bert.embeddings.word.weight", "bert.pooler.weight"] in groups
    assert ["bert.encoder.layer.2.experts.1.w"] in groups and ["fc1.weight"] in groups
    assert len(groups_of(["h.0.a", "h.0.b", "h.1.a", "wte.weight"])) == 3
    assert groups_of([]) == []


def test_neighbouring_blocks_are_joined_to_sixteen_groups_at_most() -> None:
    blocks = [f"encoder.layers.{index}.{part}" for index in range(24) for part in "ab"]
    groups = groups_of(sorted(["embed.weight", "head.weight", *blocks]))
    assert len(groups) == 16 and [["embed.weight"], ["head.weight"]] == groups[:2]
    numbers = [[int(name.split(".")[2]) for name in group[::2]] for group in groups[2:]]
    assert [one for some in numbers for one in some] == list(range(24))
    assert {len(some) for some in numbers} == {1, 2}
    many = [f"module{index}.weight" for index in range(40)]
    assert len(groups_of(many)) == 16
    both = groups_of([*many, *blocks])
    assert len(both) == 16 and len(both[-1]) == 48
    assert sorted(name for group in both for name in group) == sorted([*many, *blocks])


# --- in a federation --------------------------------------------------------------------------


def test_a_federation_takes_a_q_of_each_group_and_reports_their_mean() -> None:
    plain = run(DarexStrategy(fedavg(), 0.9, values="fp32", seed=5, dense_below=0))
    step = {name: plain[name] - BASE[name] for name in BASE}
    parts = {"layer.weight": 0.25, "layer.bias": 0.25, "head.weight": 0.8}

    def validate(arrays: Mapping[str, np.ndarray]) -> float:
        loss = Valley(step, parts)
        return loss({name: arrays[name] - BASE[name] for name in BASE})

    options: dict[str, Any] = {"q": "group-server-validation", "validate": validate}
    strategy = DarexStrategy(fedavg(), 0.9, values="fp32", seed=5, dense_below=0, **options)
    found = run(strategy)
    went = {
        n: float(np.vdot(found[n] - BASE[n], step[n]) / np.vdot(step[n], step[n])) for n in BASE
    }
    assert all(parts[name] / 1.27 < went[name] < parts[name] * 1.27 for name in BASE)
    assert strategy.q == pytest.approx(np.mean([FIRST / part for part in went.values()]), rel=1e-4)


def test_q_by_group_needs_a_loss_and_a_loss_needs_q_by_the_server() -> None:
    words = "q = 'server-validation' or 'group-server-validation' and validate need each other"
    for options in ({"q": "group-server-validation"}, {"validate": len, "q": "curvature"}):
        with pytest.raises(ValueError, match=words):
            DarexStrategy(fedavg(), **options)  # type: ignore[arg-type]


def test_a_run_says_between_which_tensors_q_lies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"federation.clients": 2, "federation.rounds": 1, "train.local-steps": 5}
    few = {"server.validation-examples": 20, "compress.q": "group-server-validation"}
    with listening(caplog), caplog.at_level("INFO", logger="flwr"):
        made = make_app(make_config(values | few), [RunFolder(tmp_path / "out")])
        simulate_in_process(made, app, clients=2)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failures"] == 0
    assert "q by tensor: from 0.0" in caplog.text
