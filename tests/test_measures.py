"""What a run is worth, on curves that a person can follow with a pencil."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from fl_darex.errors import ConfigError
from fl_darex.study.curves import Curve, read_curve
from fl_darex.study.intervals import bootstrap, interval
from fl_darex.study.measures import area, at_budget, pareto, seconds_to_target, to_target

METRICS = [None, 0.5, 0.9, 0.7]


def run_folder(path: Path, metrics: list[float | None] = METRICS, **summary: Any) -> Path:
    """Two clients; round i sends i kB up and 2i kB down, of which client 0 has a quarter."""
    path.mkdir(parents=True, exist_ok=True)
    rounds, clients = [], [exchange(0, 0, 30, 70)]
    for number, metric in enumerate(metrics, start=1):
        up, down = 1000 * number, 2000 * number
        row = {"round": number, "metric": metric, "up_bytes": up, "down_bytes": down}
        rounds.append(row)
        clients += [
            exchange(number, 0, up // 4, down // 4),
            exchange(number, 1, up // 4, down // 4),
        ]
        clients.append(exchange(number, 1, up // 2, down // 2, "evaluate"))
    for name, rows in (("rounds", rounds), ("clients", clients)):
        (path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = {"status": "finished", "initial_metric": 0.1, "handshake_bytes": 100} | summary
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def exchange(number: int, client: int, up: int, down: int, kind: str = "train") -> dict[str, Any]:
    return {
        "round": number,
        "client": client,
        "kind": kind,
        "up_bytes": up,
        "down_bytes": down,
    }


@pytest.fixture
def curve(tmp_path: Path) -> Curve:
    return read_curve(run_folder(tmp_path / "run"))


def test_bytes_until_a_target_are_those_of_the_first_round_that_reaches_it(curve: Curve) -> None:
    assert curve.total == [3100, 9100, 18100, 30100]
    assert to_target(curve, 0.5) == (2, 3000, 6000, 9100)
    assert to_target(curve, 0.6) == (3, 6000, 12000, 18100)
    assert to_target(curve, 0.91) is None
    assert curve.final == 0.7


def test_a_budget_buys_what_was_measured_before_it_was_spent(curve: Curve) -> None:
    assert at_budget(curve, 9099) == 0.1
    assert at_budget(curve, 9100) == 0.5
    assert at_budget(curve, 1e9) == 0.7


def test_time_on_the_wire_is_that_of_the_slowest_client_in_each_round(curve: Curve) -> None:
    # Client 1 has three quarters: in round 1 750 bytes up and 1,500 down.
    up, down = 0.006, 0.012  # Mbit/s: 750 and 1,500 bytes a second
    assert curve.seconds(up, down) == pytest.approx([2, 6, 12, 20])
    assert seconds_to_target(curve, 0.9, up, down) == pytest.approx(12)
    assert seconds_to_target(curve, 0.95, up, down) is None


def test_the_area_is_the_mean_of_the_metric_over_the_logarithm_of_bytes(curve: Curve) -> None:
    between = lambda low, high: math.log(high / low)  # noqa: E731
    expected = 0.1 * between(1000, 9100) + 0.5 * between(9100, 18100) + 0.9 * between(18100, 20000)
    found = area(curve, 1000, 20000)
    assert found == pytest.approx(expected / between(1000, 20000))
    assert area(curve, 40000, 80000) == pytest.approx(0.7)
    assert area(curve, 10, 20) == pytest.approx(0.1)


def test_nothing_measured_has_no_area_and_no_final_metric(tmp_path: Path) -> None:
    curve = read_curve(run_folder(tmp_path, [None, None], initial_metric=None))
    assert area(curve, 10, 20) is None and curve.final is None and at_budget(curve, 1e9) is None


def test_a_last_line_that_is_not_whole_yet_is_not_there(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "met')
    assert read_curve(folder).rounds == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["summary.json", "rounds.jsonl", "clients.jsonl"])
def test_what_is_no_run_is_refused_with_the_file_that_lacks(tmp_path: Path, name: str) -> None:
    folder = run_folder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"is no run folder: it has no {name}"):
        read_curve(folder)


@pytest.mark.parametrize("text", ["{", "[]\n", '{"metric": 1}\n'])
def test_a_damaged_run_is_refused(tmp_path: Path, text: str) -> None:
    folder = run_folder(tmp_path)
    (folder / "rounds.jsonl").write_text(text + "\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_curve(folder)


def test_the_front_leaves_out_whatever_costs_more_and_is_no_better() -> None:
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.6), (2.0, 0.4), (4.0, 0.6), (5.0, 0.9)]
    assert pareto(points) == [1, 2, 5]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    found = pareto([(float(x), float(y)) for x, y in points])
    expected = {
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    assert set(found) == expected and sorted(found, key=lambda p: points[p][0]) == found


def test_the_interval_is_students() -> None:
    values = [0.91, 0.93, 0.9, 0.95]
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(values)
    assert found.mean == pytest.approx((low + high) / 2) and found.half is not None
    assert found.half == pytest.approx((high - low) / 2)
    assert interval([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = bootstrap(draws.normal(0.3, 1.0, size=(1, 25)).tolist())
        hits += low <= 0.3 <= high
    assert 85 <= hits <= 99


def test_a_bootstrap_of_the_same_value_is_that_value_and_more_tasks_vary_more() -> None:
    assert bootstrap([[0.5, 0.5], [0.5]]) == (0.5, 0.5)
    alike, apart = bootstrap([[0.0, 0.1]] * 4), bootstrap([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]])
    assert alike[1] - alike[0] < 0.2 < apart[1] - apart[0]
    with pytest.raises(ValueError, match="at least one value in each task"):
        bootstrap([[0.1], []])
