"""Every method in a federated round: what clients prune, what they lack, and who chooses q."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import federations
import numpy as np
import pytest
from apps import BASE, step_of
from federations import CLIENTS, fedavg, listening

from fl_darex.clients import DarexMod
from fl_darex.errors import DeltaError
from fl_darex.masks import ONE, keep_threshold
from fl_darex.pruning import dare, magnitude, structured, wanda
from fl_darex.strategies import DarexStrategy
from fl_darex.survivors import Survivors

WEIGHTS = np.arange(1, CLIENTS + 1) / 10
NORMS = {"layer.weight": np.linspace(0, 3, 50), "head.weight": np.linspace(2, 1, 50)}
METHODS = {
    "dare": dare,
    "structured": partial(structured, columns=0.2),
    "magnitude": magnitude,
    "wanda": partial(wanda, norms=NORMS, scope="row"),
}


def norms(message: Any, context: Any) -> Mapping[str, np.ndarray]:
    return NORMS


def run(strategy: DarexStrategy, mod: DarexMod | None = None, count: int = 1) -> dict[str, Any]:
    return federations.run(strategy, count, mods=[mod or DarexMod(norms=norms)])


def steps_of(client: int) -> dict[str, np.ndarray]:
    return {k: (v + step_of(client, 1, v.shape)) - v for k, v in BASE.items()}


def pruned(method: str, client: int, p: float, seed: int) -> Survivors:
    return METHODS[method](steps_of(client), p, seed=seed, round_=1, slot=client)


def assert_mean(found: dict[str, np.ndarray], changes: list[dict[str, np.ndarray]]) -> None:
    for name, base in BASE.items():
        expected = base.astype(np.float64)
        for weight, change in zip(WEIGHTS, changes, strict=True):
            expected = expected + weight * change[name]
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_the_average_is_that_of_what_each_client_pruned(method: str, p: float) -> None:
    options: dict[str, Any] = {"columns": max(0.2, 1 - p), "scope": "layer"}
    if method == "wanda":
        options["scope"] = "row"
    strategy = DarexStrategy(
        fedavg(), p, method=method, values="fp32", seed=5, **options, dense_below=0
    )
    found = run(strategy)
    if method == "structured":
        kept = [
            structured(steps_of(i), p, options["columns"], seed=5, round_=1, slot=i)
            for i in range(CLIENTS)
        ]
    else:
        kept = [pruned(method, i, p, seed=5) for i in range(CLIENTS)]
    assert_mean(found, [one.rescaled() for one in kept])
    assert strategy.counted == CLIENTS
    assert strategy.q == kept[0].q


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("downlink", ["update", "server"])
def test_clients_hold_the_servers_model_whatever_the_method(method: str, downlink: str) -> None:
    # A client that put another model together would refuse the next delivery.
    options: dict[str, Any] = {"p": 0.9, "method": method, "columns": 0.2, "values": "fp32"}
    strategy = DarexStrategy(fedavg(), downlink=downlink, **options)
    found = run(strategy, count=4)
    assert strategy.counted == CLIENTS
    if downlink == "update":
        dense = run(DarexStrategy(fedavg(), downlink="dense", **options), count=4)
        assert all(found[name].tobytes() == dense[name].tobytes() for name in BASE)


def test_a_shared_structured_mask_gives_the_mean_its_columns() -> None:
    options: dict[str, Any] = {"p": 0.9, "columns": 0.2, "mask": "round", "values": "fp32"}
    found = run(DarexStrategy(fedavg(), method="structured", **options))
    moved = np.flatnonzero((found["layer.weight"] != BASE["layer.weight"]).any(axis=0))
    assert 0 < moved.size <= 10


def test_a_client_that_cannot_weigh_by_activations_does_not_count_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = DarexStrategy(fedavg(), 0.9, method="wanda")
    with listening(caplog), pytest.raises(DeltaError, match="in this round or any"):
        run(strategy, DarexMod())
    assert "give it DarexMod(norms=...)" in caplog.text


# --- q chosen by clients ----------------------------------------------------------------------


def chooses(*qs: Any) -> DarexMod:
    """A mod whose client number i chooses qs[i]."""

    def search(message: Any, context: Any, survivors: Survivors, rule: str) -> Any:
        assert rule == "layer-q-e" and survivors.count
        return qs[int(context.node_config["partition-id"])]

    return DarexMod(search=search)


def test_each_clients_own_q_divides_its_survivors() -> None:
    qs = [0.1, 0.25, np.array([0.2, 0.5, 1.0], np.float32), 1.0]
    strategy = DarexStrategy(fedavg(), 0.9, q="layer-q-e", values="fp32", seed=5, dense_below=0)
    found = run(strategy, chooses(*qs))
    changes = []
    for client, q in enumerate(qs):
        kept = pruned("dare", client, 0.9, seed=5).rescaled()
        first = keep_threshold(0.9) / ONE
        by_name = dict(zip(sorted(BASE), np.broadcast_to(q, 3).tolist(), strict=True))
        changes.append({name: change * first / by_name[name] for name, change in kept.items()})
    assert_mean(found, changes)
    assert strategy.q == pytest.approx(np.mean([0.1, 0.25, (0.2 + 0.5 + 1) / 3, 1.0]))


@pytest.mark.parametrize("odd", [0.05, 1.5, float("nan"), np.array([0.2, 0.05, 0.5], np.float32)])
def test_a_search_that_leaves_its_range_costs_that_reply(odd: Any) -> None:
    strategy = DarexStrategy(fedavg(), 0.9, q="layer-q-e", dense_below=0)
    run(strategy, chooses(0.2, odd, 0.2, 0.2))
    assert strategy.counted == CLIENTS - 1


@pytest.mark.parametrize("odd", ["0.2", [0.2, 0.3, "x"], 0.2 + 1j, {"a": 0.2}])
def test_a_search_that_returns_no_number_costs_that_reply_and_the_log_says_so(
    odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = DarexStrategy(fedavg(), 0.9, q="layer-q-e", dense_below=0)
    with listening(caplog):
        run(strategy, chooses(0.2, odd, 0.2, 0.2))
    assert strategy.counted == CLIENTS - 1
    assert "search must return a number or an array" in caplog.text


def test_a_list_of_numbers_is_an_array() -> None:
    strategy = DarexStrategy(fedavg(), 0.9, q="layer-q-e", dense_below=0)
    run(strategy, chooses([0.2, 0.3, 0.4], 0.3, 0.3, 0.3))
    assert strategy.counted == CLIENTS and strategy.q == pytest.approx(0.3)


def test_a_client_that_cannot_search_is_told() -> None:
    strategy = DarexStrategy(fedavg(), 0.9, q="q-v")
    with pytest.raises(DeltaError, match=r"in this round or any.*DarexMod\(search=...\)"):
        run(strategy, DarexMod())


# --- q chosen by the server -------------------------------------------------------------------


def test_the_server_takes_the_q_with_the_smallest_loss_along_its_step() -> None:
    plain = run(DarexStrategy(fedavg(), 0.9, values="fp32", seed=5, dense_below=0))
    step = {name: plain[name] - BASE[name] for name in BASE}
    asked: list[float] = []

    def validate(arrays: Mapping[str, np.ndarray]) -> float:
        """Smallest 0.4 of the way along the step."""
        asked.append(1.0)
        return sum(
            float(np.square(arrays[name] - BASE[name] - 0.4 * step[name]).sum()) for name in BASE
        )

    strategy = DarexStrategy(
        fedavg(),
        0.9,
        q="server-validation",
        validate=validate,
        values="fp32",
        seed=5,
        dense_below=0,
    )
    found = run(strategy)
    first = keep_threshold(0.9) / ONE
    # Candidates lie 21 % apart, and the best is the nearest to 0.1 / 0.4 on one side.
    assert 0.4 / 1.22 < first / strategy.q < 0.4 * 1.22
    assert len(asked) < 10
    for name in BASE:
        expected = BASE[name] + step[name] * np.float32(first / strategy.q)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)


def test_a_loss_that_is_never_finite_leaves_the_plain_step() -> None:
    plain = run(DarexStrategy(fedavg(), 0.9, seed=5, dense_below=0))
    odd = DarexStrategy(
        fedavg(), 0.9, q="server-validation", validate=lambda arrays: np.nan, seed=5, dense_below=0
    )
    found = run(odd)
    assert odd.q == keep_threshold(0.9) / ONE
    for name in BASE:
        np.testing.assert_allclose(found[name], plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magnitude", "mask": "round"}, "chooses by value: set mask = 'client'"),
        (
            {"method": "structured", "columns": 0.01, "p": 0.9},
            "columns = 0.01 keeps fewer entries than p = 0.9 does",
        ),
        ({"scope": "rows"}, r"scope = 'rows' is not allowed; .* did you mean 'row'\?"),
        (
            {"q": "q-w"},
            r"q must be 'dare' \(q = 1-p\), a number in \(0, 1\], or one of 'q-v', 'q-e'",
        ),
        ({"q": "curvatur"}, "got 'curvatur'; did you mean 'curvature'"),
        ({"q": "server-validation"}, "need each other"),
        ({"validate": len}, "need each other"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DarexStrategy(fedavg(), **options)
