"""The same seed gives the same weights, whatever the engine and however many workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Commands
from ray.cluster_utils import Cluster
from test_resume_runs import SMALL, rounds, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ARMS = {
    "dare with AdamR and the server's step packed": ["compress.downlink=server"],
    "FedAdam, disjoint masks, one bit": [
        "server.strategy=fedadam",
        "server.lr=0.01",
        "compress.mask=disjoint",
        "compress.values=eden1",
    ],
    "a method of one's own with a residual, clients evaluate": [
        "compress.method=topk:TopK",
        "compress.fraction=0.05",
        "federation.evaluate=clients",
    ],
}
ENGINES = {
    "one actor": ["resources.actors=1"],
    "two actors": ["resources.actors=2", "resources.num-cpus=0.5"],
    "four actors": ["resources.actors=4", "resources.num-cpus=0.5"],
    "Flower's engine": ["--engine=flower"],
}


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands(Path(__file__).resolve().parent.parent / "examples" / "extend") as found:
        yield found


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of one core each."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.add_node(num_cpus=1)
    yield found.address
    found.shutdown()


@pytest.mark.parametrize("arm", ARMS)
def test_weights_and_what_came_of_rounds_are_the_same_on_every_engine_and_number_of_workers(
    arm: str, commands: Commands, cluster: str, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    places = {"in process": ["--engine=local"], **ENGINES}
    places["two Ray nodes"] = [f"resources.ray-address={cluster}"]
    found: dict[str, Path] = {}
    for name, place in places.items():
        out = tmp_path / name.replace(" ", "-")
        arguments = ["run", "small.toml", "federation.clients=6", "federation.rounds=3"]
        process = commands.start([*arguments, *ARMS[arm], *place, f"--out={out}"], tmp_path)
        assert commands.wait(process) == 0, (tmp_path / "log").read_text()
        found[name] = out
    expected = found.pop("in process")
    for name, out in found.items():
        assert weights(out) == weights(expected), name
        assert told(out) == told(expected), name
        for found_up, expected_up in zip(up(out), up(expected), strict=True):
            # Flower's engine numbers nodes and runs at random; an id is a few bytes, deflated.
            assert abs(found_up - expected_up) <= (16 * 8 if "Flower" in name else 0), name


def told(folder: Path) -> list[dict[str, Any]]:
    """What came of each round, but for bytes."""
    return [{k: v for k, v in row.items() if not k.endswith("bytes")} for row in rounds(folder)]


def up(folder: Path) -> list[int]:
    """Bytes up by round; the way down tells clients their resources, too, if they are set."""
    return [row["up_bytes"] for row in rounds(folder)]


def test_the_cluster_of_two_nodes_uses_both(cluster: str) -> None:
    script = """
import sys
from fl_darex.simulation import Resources
from fl_darex.simulation.cluster import connect
from fl_darex.simulation.room import capacity, machines
resources = Resources(ray_address=sys.argv[1])
connect(resources)
print(len(machines()), capacity(machines(), resources.fixed))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, cluster],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    assert done.stdout.split() == ["2", "2"], done.stderr
