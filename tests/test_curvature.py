"""``q = "curvature"``: one q for each tensor, by the noise and the step that the loss sees."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apps import BASE
from federations import fedavg, listening, run

from fl_darex.clients import DarexMod
from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.delta import Delta
from fl_darex.flower.records import view_arrays
from fl_darex.masks import ONE, keep_threshold
from fl_darex.observers.run_folder import RunFolder
from fl_darex.pruning import dare
from fl_darex.rescaling import curvature_q
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.server_app import make_app
from fl_darex.survivors import Survivors
from fl_darex.training.calibration import choose_q
from fl_darex.training.loop import train
from fl_darex.training.session import Session

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
KEEP = 0.25
ROWS = {
    "a": np.random.default_rng(1).normal(size=(6, 3)),
    "b": np.random.default_rng(2).normal(size=(9, 4)) * [3.0, 1.0, 0.3, 0.1],
}
CHANGE = {"a": np.array([1.0, 0.8, 1.2]), "b": np.array([0.5, 1.0, -2.0, 3.0])}
"""Regressions on the rows, with residuals of 1 and -1 for each: the change ends in the minimum, and
the mean of squared gradients is the Hessian itself."""


def weights(device: str = "cpu") -> dict[str, torch.Tensor]:
    return {
        name: torch.full((change.size,), 0.5, dtype=torch.float64, device=device).requires_grad_()
        for name, change in CHANGE.items()
    }


def losses(at: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    for name, rows in ROWS.items():
        for row, residual in itertools.product(rows, (1.0, -1.0)):
            output = torch.tensor(row, device=at[name].device) @ at[name]
            yield 0.5 * (output - output.detach() - residual).square()


def found_q(at: Mapping[str, torch.Tensor], p: float = 1 - KEEP, **options: Any) -> np.ndarray:
    return curvature_q(at, Delta(CHANGE, dtype=np.float64), losses(at), p, **options)


def best_of_all_masks(name: str, clients: int, shared: bool, nmse: float) -> float:
    """The q with the smallest mean loss over every mask, and every error of the values."""
    x, error = CHANGE[name], np.sqrt(nmse)
    hessian = 2 * ROWS[name].T @ ROWS[name]
    outcomes = [(0.0, 1 - KEEP), (1 + error, KEEP / 2), (1 - error, KEEP / 2)]
    length, bend = np.zeros_like(x), 0.0
    for drawn in itertools.product(outcomes, repeat=x.size * (1 if shared else clients)):
        factors = np.array([value for value, _ in drawn]).reshape(-1, x.size)
        chance = np.prod([part for _, part in drawn])
        step = factors.mean(axis=0) * x
        length += chance * step
        bend += chance * step @ hessian @ step
    q = np.linspace(KEEP, 1.0, 200_001)
    return float(q[np.argmin(0.5 * bend / q**2 - length @ hessian @ x / q)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("clients", "shared", "nmse"),
    [(1, False, 0.0), (2, False, 0.0), (2, True, 0.0), (2, False, 0.4)],
)
def test_q_is_the_best_over_all_masks_where_the_loss_is_quadratic(
    clients: int, shared: bool, nmse: float, device: str
) -> None:
    at = weights(device)
    found = found_q(at, clients=clients, shared=shared, nmse=nmse)
    best = [best_of_all_masks(name, clients, shared, nmse) for name in CHANGE]
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-5)
    assert min(best) > KEEP and np.ptp(best) > 0.01
    assert all(weight.grad is None for weight in at.values())


def test_with_a_shared_mask_the_error_of_values_alone_averages_out() -> None:
    exact = found_q(weights(), shared=True)
    one, many = (found_q(weights(), shared=True, nmse=0.1, clients=n) for n in (1, 10**9))
    np.testing.assert_allclose(many, exact, rtol=1e-6)
    assert (one >= many).all() and (one > many).any()


@pytest.mark.parametrize(
    ("odd", "kind", "words"),
    [
        ({"clients": 0}, ValueError, "clients must be 1 or more, got 0"),
        ({"clients": -2}, ValueError, "clients must be 1 or more, got -2"),
        ({"clients": 2.5}, TypeError, "clients must be 1 or more, got 2.5"),
        ({"nmse": -0.1}, ValueError, "nmse must be a finite number from 0 on, got -0.1"),
        ({"nmse": float("nan")}, ValueError, "nmse must be a finite number"),
        ({"nmse": "0.5"}, TypeError, "nmse must be a finite number"),
    ],
)
def test_arguments_outside_their_range_are_refused(
    odd: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        found_q(weights(), **odd)


def test_where_nothing_is_dropped_nothing_is_shortened() -> None:
    assert found_q(weights(), 0.0).tolist() == [1.0, 1.0]


def test_a_tensor_without_gradient_or_change_keeps_the_plain_q() -> None:
    at = weights()
    at["b"].requires_grad_(False)
    unmoved = Delta(CHANGE | {"a": np.zeros(3)}, dtype=np.float64)
    assert curvature_q(at, unmoved, losses(at | {"b": weights()["b"]}), 0.75).tolist() == [0.25] * 2
    for one in at.values():
        one.requires_grad_(False)
    assert curvature_q(at, unmoved, iter(()), 0.75).tolist() == [0.25] * 2


def test_a_change_along_which_no_gradient_points_is_all_noise() -> None:
    one = {"w": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    across = Delta({"w": np.array([1.0, -1.0])}, dtype=np.float64)
    assert curvature_q(one, across, [one["w"].sum()], 0.9).tolist() == [1.0]
    along = Delta({"w": np.array([1.0, 1.0])}, dtype=np.float64)
    # Two entries side by side: C = (1 + 1)^2, D = 1 + 1, so V/C = 9 / 2.
    found = curvature_q(one, along, [one["w"].sum()], 0.9)
    np.testing.assert_allclose(found, keep_threshold(0.9) / ONE * 5.5, rtol=1e-6)


def test_a_batch_without_finite_gradients_does_not_count() -> None:
    at = weights()

    def some() -> Iterator[torch.Tensor]:
        yield at["a"].sum() * float("nan")
        yield from losses(at)
        yield at["b"].sum() * float("inf")

    found = curvature_q(at, Delta(CHANGE, dtype=np.float64), some(), 1 - KEEP)
    assert found.tolist() == found_q(at).tolist()
    with pytest.raises(ValueError, match="no batch has finite gradients"):
        curvature_q(at, Delta(CHANGE), [at["a"].sum() * float("nan")], 1 - KEEP)


# --- on a client ------------------------------------------------------------------------------

P = 0.9


def trained(**settings: object) -> tuple[Session, Mapping[str, np.ndarray], Survivors]:
    values = {"federation.clients": 5, "federation.clients-per-round": 3, "compress.p": P}
    one = Session(make_config(values | {"compress.q": "curvature", **settings}))
    before = {name: array.copy() for name, array in one.base.items()}
    train(one, 1, 1)
    return one, before, dare(Delta(one.read(), before), P, seed=3, slot=1)


def transcribed(
    one: Session, before: Mapping[str, np.ndarray], size: int, noise: float
) -> np.ndarray:
    """The formula in float64, from gradients that are held all at once."""
    examples, keep = one.calibration(1), keep_threshold(P) / ONE
    one.model.train(False)
    rows: list[list[np.ndarray]] = []
    names = sorted(before)
    for start in range(0, len(examples), size):
        one.model.zero_grad()
        one.model(**one.task.inputs(examples[start : start + size])).loss.backward()
        rows.append([one.tensors[n].grad.double().numpy().ravel() for n in names])  # type: ignore[union-attr]
    one.model.zero_grad()
    found = []
    for index, name in enumerate(names):
        x = (one.read()[name].astype(np.float64) - before[name]).ravel()
        gradients = np.stack([row[index] for row in rows])
        diagonal = np.sum(np.mean(gradients**2, axis=0) * x**2)
        found.append(keep * (1 + noise * diagonal / np.mean((gradients @ x) ** 2)))
    return np.clip(found, keep, 1.0)


K = keep_threshold(P) / ONE
NMSE1 = np.pi / 2 - 1


@pytest.mark.parametrize(
    ("settings", "size", "noise", "short"),
    [
        ({}, 2, (1 - K) / K / 3, 1.0),
        ({"compress.mask": "round"}, 2, (1 - K) / K, 1.0),
        ({"compress.calibration-examples": 9}, 1, (1 - K) / K / 3, 1.0),
        ({"compress.calibration-examples": 1}, 1, (1 - K) / K / 3, 1.0),
        ({"compress.values": "eden1"}, 2, ((1 + NMSE1) / K - 1) / 3, 1.0),
        (
            {"compress.values": "eden1", "compress.scale": "least-squares"},
            *(2, ((1 + NMSE1) / K - 1) / 3, 1 + NMSE1),
        ),
    ],
)
def test_a_client_takes_the_formula_on_gradients_of_its_training_loss(
    settings: dict[str, object], size: int, noise: float, short: float
) -> None:
    one, before, survivors = trained(**settings)
    values = {name: tensor.detach().clone() for name, tensor in one.tensors.items()}
    found = choose_q(one, 1, survivors, before, "curvature")
    assert all(torch.equal(tensor, values[name]) for name, tensor in one.tensors.items())
    expected = np.maximum(transcribed(one, before, size, noise) / short, K)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.unique(found).size > 10


def test_the_more_clients_the_less_noise_is_left() -> None:
    one, before, survivors = trained()
    few, many = (choose_q(one, 1, survivors, before, "curvature", n) for n in (2, 200))
    assert np.all(many <= few) and np.any(many < few)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_finds_about_the_same(precision: str) -> None:
    one, before, survivors = trained()
    exact = choose_q(one, 1, survivors, before, "curvature")
    config = {**one.config.flat(), "train.precision": precision}
    half = Session(make_config(config))
    half.write(one.read())
    rough = choose_q(half, 1, survivors, before, "curvature")
    assert not np.array_equal(exact, rough)
    # Keys' biases do nothing in a softmax: their gradients are round-off, so any q is as good.
    counts = np.array(["key.bias" not in n and "k_proj.bias" not in n for n in sorted(before)])
    assert not counts.all()
    np.testing.assert_allclose(np.asarray(rough)[counts], np.asarray(exact)[counts], rtol=0.1)


# --- in a federation --------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.99, 0.999])
def test_a_run_takes_a_larger_q_and_says_between_which_tensors_it_lies(
    p: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"federation.clients": 3, "federation.rounds": 2, "train.local-steps": 5}
    config = make_config(values | {"compress.p": p, "compress.q": "curvature"})
    with listening(caplog), caplog.at_level("INFO", logger="flwr"):
        simulate_in_process(make_app(config, [RunFolder(tmp_path / "out")]), app, clients=3)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failures"] == 0
    rows = (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()
    assert all(1.05 * (1 - p) < json.loads(row)["q"] < 1 for row in rows)
    said = re.findall(r"q by tensor: from ([\d.]+) \((.+)\) to ([\d.]+) \((.+)\)", caplog.text)
    assert len(set(said)) == 2
    for low, first, high, last in said:
        assert 0.99 * (1 - p) < float(low) < float(high) <= 1 and first != last


def test_an_app_of_ones_own_finds_q_with_the_library_in_its_search() -> None:
    seen: list[str] = []

    def search(message: Any, context: Any, survivors: Survivors, rule: str) -> np.ndarray:
        """Of a loss that is the sum of all entries."""
        seen.append(rule)
        before = view_arrays(message.content.array_records["arrays"])
        tensors = {n: torch.tensor(a, requires_grad=True) for n, a in before.items()}
        change = {n: np.ones_like(a) for n, a in before.items()}
        losses = [sum((t.sum() for t in tensors.values()), torch.zeros(()))]
        delta = Delta(change, layout=survivors.layout)
        return curvature_q(tensors, delta, losses, 0.9, clients=4)

    strategy = DarexStrategy(fedavg(), 0.9, q="curvature", dense_below=0, seed=5)
    run(strategy, mods=[DarexMod(search=search)])
    assert seen == ["curvature"] * 4 and strategy.counted == 4
    sizes = np.array([array.size for array in BASE.values()])
    assert strategy.q == pytest.approx(np.mean(K * (1 + (1 - K) / K / 4 / sizes)), rel=1e-6)
