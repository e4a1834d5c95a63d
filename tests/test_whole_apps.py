"""Whole Flower apps that know nothing of fl-darex, from their folders, on all engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import remembering_app
from example_apps import prepare
from flwr.app import Message, RecordDict
from own_ray import own_ray

from fl_darex.flower.private import ErrorCode
from fl_darex.observers.live import Workload
from fl_darex.simulation import RayGrid, Resources, simulate, simulate_in_process
from fl_darex.simulation.own_modules import imported_from

HERE = Path(__file__).resolve().parent
PLAIN = HERE / "plain_app"
RUNS = {"ray": simulate, "local": simulate_in_process}


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    """One Ray for the module, which knows nothing of the apps' folders."""
    with own_ray(2, HERE, HERE.parent):
        yield


def said(app: Path, run: Any, out: Path, **options: Any) -> Any:
    """What an app has written."""
    run(app, run_config={"out": str(out), **options.pop("run_config", {})}, **options)
    return json.loads(out.read_text("utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `plain_app` says on each of our engines."""
    out = tmp_path_factory.mktemp("plain")
    return {name: said(PLAIN, run, out / f"{name}.json") for name, run in RUNS.items()}


@pytest.mark.parametrize("engine", RUNS)
def test_clients_see_node_run_configuration_state_mods_and_lifespans(
    plain: dict[str, Any], engine: str
) -> None:
    found = plain[engine]
    assert found["nodes"] == 5  # as the file says
    assert found["run_config"] == {"rounds": 2, "train.lr": 0.5, "train.clip": True}
    assert found["ended"]  # the server's lifespan
    for partition, row in enumerate(found["first"]):
        assert row == {
            "node.partition-id": partition,
            "node.num-partitions": 5,
            "run.rounds": 2,
            "run.train.lr": 0.5,
            "run.train.clip": True,
            "count.began": 1,  # the lifespan; the app's mod comes after it
            "count.outer": 1,
            "round": 1,
            "node is the context's": True,
            "marks": ["outer"],  # the app's mod is around the function's
            "inner": True,
        }
    for partition, row in enumerate(found["then"]):
        # Four messages, but one fewer where it raised: what it wrote then is not kept.
        whole = 3 if partition == 1 else 4
        counts = {name: row[f"count.{name}"] for name in ("began", "outer", "ended", "asked")}
        assert counts == {"began": whole, "outer": whole, "ended": whole - 1, "asked": 1}
        assert row["round"] == 2 and "count.failed" not in row


@pytest.mark.parametrize("engine", RUNS)
def test_errors_named_actions_and_push_and_pull_give_one_reply_each(
    plain: dict[str, Any], engine: str
) -> None:
    found, raised = plain[engine], int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    assert found["failed"] == [None, [raised, True], None, None, None]
    assert found["unknown"] == [[raised, False]] * 5
    assert found["twice"] == [0, 2, 4, 6, 8]


def steps(partition: int, round_: int) -> list[np.ndarray]:
    """What `plain_app.task.trained` adds, as `task.py` draws it."""
    rng = np.random.default_rng([partition, round_])
    drawn = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (3,))]
    return [np.float32(50 if partition == 3 else 0.5) * step for step in drawn]


@pytest.mark.parametrize("engine", RUNS)
def test_flowers_strategies_give_what_they_are_known_to_give(
    plain: dict[str, Any], engine: str
) -> None:
    found = plain[engine]["strategies"]
    start = [np.linspace(-1, 1, 12), np.zeros(3)]

    def moved(name: str) -> np.ndarray:
        model = found[name]["model"]
        return np.concatenate([np.asarray(a) - b for a, b in zip(model, start, strict=True)])

    def flat(partition: int, round_: int) -> np.ndarray:
        return np.concatenate([step.ravel() for step in steps(partition, round_)])

    rounds, clients = (1, 2), range(5)
    mean = sum((p + 1) / 15 * flat(p, r) for r in rounds for p in clients)
    # Sums of float32 numbers up to 200.
    np.testing.assert_allclose(moved("FedAvg"), mean, rtol=0, atol=1e-5)
    # Krum takes whole models of single clients, and not the one that is far away.
    choices = [flat(a, 1) + flat(b, 2) for a in clients for b in clients if 3 not in (a, b)]
    assert min(abs(moved("Krum") - choice).max() for choice in choices) < 1e-5
    # With the bias corrected, a step of Adam is about eta long in each entry, and no longer.
    assert abs(moved("FedAdam")).max() <= 2 * 0.1 * 1.01
    # No client's update is longer than 0.5 in either round; the noise has a deviation of .01.
    for name in ("server clips", "client clips"):
        assert np.linalg.norm(moved(name)) <= 2 * (0.5 + 5 * 0.1 * 0.5 / 5 * np.sqrt(15))
    for name, one in found.items():
        losses = [round_["loss"] for round_ in one["train"]]
        expected = 40 / 15  # weighted by examples: 1 * 0 + 2 * 1 + 3 * 2 + ...
        if name != "Krum":
            assert losses == pytest.approx([expected] * 2)
        assert one["evaluate"][-1]["moved"] == pytest.approx(abs(moved(name)).sum(), rel=1e-4)


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """All is equal, and the models but for the order in which replies were added."""
    for key in one:
        if key != "strategies":
            assert one[key] == other[key], key
    assert one.keys() == other.keys() and one["strategies"].keys() == other["strategies"].keys()
    for name, found in one["strategies"].items():
        theirs = other["strategies"][name]
        for a, b in zip(found["model"], theirs["model"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        for kind in ("train", "evaluate"):
            for mine, its in zip(found[kind], theirs[kind], strict=True):
                assert mine == pytest.approx(its, rel=1e-5), (name, kind)


def test_the_app_says_the_same_on_both_engines_of_ours(plain: dict[str, Any]) -> None:
    assert_alike(plain["ray"], plain["local"])


@pytest.mark.slow
def test_the_app_says_the_same_on_flowers_own_engine(plain: dict[str, Any], tmp_path: Path) -> None:
    script, out = HERE / "flower_engine_of_an_app.py", tmp_path / "flower.json"
    done = subprocess.run(
        [sys.executable, str(script), str(PLAIN), "5", json.dumps({"out": str(out)})],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0 and out.exists(), done.stdout + done.stderr
    assert_alike(plain["ray"], json.loads(out.read_text("utf-8")))


@pytest.mark.parametrize("engine", RUNS)
def test_an_app_of_the_older_interface_loses_no_client_though_its_server_has_many_threads(
    engine: str, tmp_path: Path
) -> None:
    found = said(HERE / "older_app", RUNS[engine], tmp_path / "out.json", clients=6)
    mean = sum((p + 1) * p for p in range(6)) / 21
    assert [row[:2] for row in found] == [[6, 0], [6, 0]]
    np.testing.assert_allclose([row[2] for row in found], [[mean] * 3, [2 * mean] * 3], rtol=1e-6)


@pytest.mark.slow
def test_a_torch_app_gives_the_same_model_on_both_engines(tmp_path: Path) -> None:
    import torch

    app = prepare("torch-app", tmp_path)
    models = {}
    for name, run in RUNS.items():
        out = tmp_path / f"{name}.pt"
        few = {"num-server-rounds": 1, "batch-size": 2000, "out": str(out)}
        run(app, clients=2, run_config=few)
        models[name] = torch.load(out)
    # All of its examples are one batch, whose order is left to chance; threads differ, too.
    for name, tensor in models["ray"].items():
        torch.testing.assert_close(models["local"][name], tensor, rtol=0, atol=1e-5)
    with imported_from(app):
        from torch_app.task import initial_model  # type: ignore[import-not-found]

        start = initial_model().state_dict()
    assert any((start[name] != tensor).any() for name, tensor in models["ray"].items())


def test_a_jax_app_learns_a_line_on_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    for name, run in RUNS.items():
        weight, bias = said(HERE / "jax_app", run, tmp_path / f"{name}.json", clients=3)
        assert (weight, bias) == pytest.approx((2.0, -1.0), abs=0.01)


def test_the_engine_on_ray_says_who_is_at_work_and_who_waits() -> None:
    with RayGrid(remembering_app(), 5, Resources(num_cpus=1)) as grid:
        assert isinstance(grid, Workload)
        assert (grid.running, grid.waiting) == (0, 0)
        messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        ids = set(grid.push_messages(messages))
        assert (grid.running, grid.waiting) == (0, 5)  # no worker has loaded the app yet
        came = 0
        while came < 5:
            came += len(list(grid.pull_messages(ids)))
            assert grid.running + grid.waiting + came == 5
