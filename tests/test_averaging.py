"""The average of a server's models: exact numbers, what is saved, and what it remembers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, fedavg, listening, rounds
from safetensors.numpy import load_file

from fl_darex.clients import DarexMod
from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.observers.run_folder import RunFolder
from fl_darex.saveable import Saveable
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies import Average, DarexStrategy
from fl_darex.strategies.server_app import make_app

SMALL = {"federation.clients": 2, "train.local-steps": 2, "train.dense-lr": 1e-3}


def model(value: float, dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "w": np.full((2, 3), value, dtype),
        "bn.num_batches_tracked": np.array(int(value), np.int64),
        "flag": np.array([value > 4]),
    }


def fed(average: Average, values: Any, dtype: Any = np.float32) -> list[dict[str, Any]]:
    found = (average.after(i, to_record(model(v, dtype))) for i, v in enumerate(values))
    return [to_arrays(one) for one in found]


def test_the_uniform_average_is_the_mean_since_its_first_round() -> None:
    for first, expected in ((1, [9.0, 1.0, 2.0, 4.0, 6.0]), (3, [9.0, 1.0, 3.0, 8.0, 10.0])):
        found = fed(Average("uniform", first=first), (9.0, 1.0, 3.0, 8.0, 12.0))
        assert [float(one["w"][1, 2]) for one in found] == expected


def test_the_moving_average_is_the_weighted_mean_without_a_bias_to_its_first_model() -> None:
    found = fed(Average("ema", decay=0.5), (9.0, 4.0, 7.0, 14.0))
    # Weights 1; 1/2, 1; 1/4, 1/2, 1: (4/2 + 7) / 1.5 and (4/4 + 7/2 + 14) / 1.75.
    expected = [9.0, 4.0, 6.0, 18.5 / 1.75]
    assert [float(one["w"][0, 0]) for one in found] == pytest.approx(expected, rel=1e-6)
    assert [one["w"][0, 0] for one in fed(Average("ema", decay=0.0), (9, 4, 7))] == [9, 4, 7]


def test_no_average_is_the_last_model_itself() -> None:
    record = to_record(model(3.0))
    assert Average("none").after(1, record) is record


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_and_names_stay_and_what_only_counts_is_the_last_one(dtype: Any) -> None:
    *_, last = fed(Average("uniform"), (0.0, 3.0, 4.0, 8.0), dtype)
    assert list(last) == list(model(0.0)) and last["w"].dtype == dtype
    assert last["w"][0, 0] == 5.0
    assert last["bn.num_batches_tracked"] == 8 and last["flag"].tolist() == [True]


def test_a_long_average_of_half_precision_keeps_what_half_precision_would_lose() -> None:
    """2048 + 1 is 2048 in float16: added up there, the mean would stay at 1 of 2."""
    values = [0.0, *[1.0, 2.0] * 1500]
    *_, last = fed(Average("uniform"), values, np.float16)
    assert last["w"][0, 0] == 1.5


def test_infinite_entries_stay_and_another_model_begins_anew() -> None:
    average = Average("uniform")
    for _ in range(3):
        found = average.after(1, to_record({"mask": np.array([-np.inf, 0.0], np.float32)}))
    assert to_arrays(found)["mask"].tolist() == [-np.inf, 0.0]
    assert to_arrays(average.after(4, to_record({"mask": np.ones(3)})))["mask"].tolist() == [1] * 3


def test_a_restored_average_goes_on_with_the_same_bits() -> None:
    values = np.random.default_rng(0).normal(size=8).tolist()
    for kind in ("uniform", "ema"):
        whole, first, second = (Average(kind, first=2) for _ in range(3))  # type: ignore[arg-type]
        assert isinstance(first, Saveable)
        expected = fed(whole, values)[-1]["w"]
        fed(first, values[:5])
        saved = pickle.dumps(first.state())
        second.restore(pickle.loads(saved))
        for round_ in (5, 6, 7):
            found = second.after(round_, to_record(model(values[round_])))
        assert to_arrays(found)["w"].tobytes() == expected.tobytes()
        first.after(5, to_record(model(99.0)))
        assert pickle.loads(saved)["count"] == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": "mean"}, ValueError, "kind must be one of .*'uniform', 'ema'.*, got 'mean'"),
        ({"first": 0}, ValueError, "first must be a round, 1 or more, got 0"),
        ({"first": 1.5}, TypeError, "first must be"),
        ({"decay": 1.0}, ValueError, r"decay must be a number in \[0, 1\), got 1"),
        ({"decay": "0.9"}, TypeError, "decay must be"),
    ],
)
def test_arguments_outside_their_range_are_refused(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Average(**options)


def test_a_strategy_of_ones_own_is_evaluated_on_its_average_in_one_line() -> None:
    average, seen = Average("uniform"), list[Any]()

    def evaluate(round_: int, arrays: Any) -> None:
        seen.append(to_arrays(arrays)["layer.bias"])

    made = lambda: DarexStrategy(fedavg(), p=0.5)  # noqa: E731
    grid = lambda: Federation(numpy_app([DarexMod()]))  # noqa: E731
    rounds(made(), grid(), 3, evaluate_fn=lambda r, a: evaluate(r, average.after(r, a)))
    last = seen.copy()
    seen.clear()
    rounds(made(), grid(), 3, evaluate_fn=evaluate)
    assert (last[0] == BASE["layer.bias"]).all()
    np.testing.assert_allclose(last[3], np.mean(seen[1:], axis=0), atol=1e-8)
    assert not np.allclose(last[3], seen[3], atol=1e-4)


def run(folder: Path, count: int, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    made = make_config(SMALL | {"federation.rounds": count} | settings)
    simulate_in_process(make_app(made, [RunFolder(folder)]), app, clients=2)
    saved = load_file(folder / "model" / "model.safetensors")
    return saved, json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_what_a_run_evaluates_and_saves_is_the_mean_of_what_it_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [run(tmp_path / str(count), count)[0] for count in (1, 2, 3)]
    with listening(caplog):
        found, summary = run(tmp_path / "mean", 3, **{"server.average": "uniform"})
    said = {r.getMessage() for r in caplog.records if "server.average" in r.getMessage()}
    assert said == {
        "what is evaluated and saved is the mean of the models from round 1 on, not the last one "
        "(server.average = 'uniform')"
    }
    for name, array in found.items():
        expected = np.mean([one[name].astype(np.float64) for one in plain], axis=0)
        np.testing.assert_allclose(array, expected, atol=1e-6)
    late, _ = run(tmp_path / "late", 3, **{"server.average": "ema", "server.average-from": 3})
    for name, array in late.items():  # of one model
        assert array.tobytes() == plain[2][name].tobytes()
    assert summary["failures"] == 0
    _, usual = run(tmp_path / "usual", 3)
    assert (summary["up_bytes"], summary["down_bytes"]) == pytest.approx(
        (usual["up_bytes"], usual["down_bytes"]), abs=300 * 6
    )  # nothing but the settings' own text


def test_an_average_that_nobody_would_measure_or_that_never_begins_is_refused() -> None:
    average = {"server.average": "uniform"}
    with pytest.raises(ConfigError, match=r"server\.average = 'uniform' .*evaluate = 'server'"):
        make_config(average | {"federation.evaluate": "clients"})
    with pytest.raises(ConfigError, match=r"average-from = 11 is after the last .* 1 to .* = 10"):
        make_config(average | {"server.average-from": 11})
