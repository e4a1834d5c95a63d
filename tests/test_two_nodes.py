"""A Ray cluster of two nodes on one host: one is lost in the middle of a round; both have GPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.cluster_utils import Cluster

from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import RayGrid, Resources

pytestmark = pytest.mark.slow
CLIENTS = 8


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield found
    ray.shutdown()
    found.shutdown()


def remembering() -> ClientApp:
    """Counts its calls in a state that is small, or too large for the driver; takes a while."""
    app = ClientApp()

    @app.query()
    def count(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        before = context.state.array_records.get("calls")
        calls = int(to_arrays(before)["n"][0]) + 1 if before else 1
        size = 100_000 if partition % 2 else 1
        context.state["calls"] = to_record({"n": np.full(size, calls, np.float32)})
        time.sleep(0.5)
        node = ray.get_runtime_context().get_node_id()
        told = ConfigRecord({"calls": calls, "node": node})
        return Message(RecordDict({"told": told}), reply_to=message)

    return app


def ask(grid: RayGrid, lose: Any = None) -> dict[int, dict[str, Any]]:
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    waiting, replies = set(grid.push_messages(messages)), list[Message]()
    end = time.monotonic() + 120
    while len(replies) < CLIENTS and time.monotonic() < end:
        replies += grid.pull_messages(waiting)
        if lose is not None and len(replies) >= 2:
            lose()
            lose = None
    assert not any(reply.has_error() for reply in replies)
    return {
        grid.partitions[reply.metadata.src_node_id]: dict(reply.content["told"])  # type: ignore
        for reply in replies
    }


def test_a_node_that_is_lost_costs_no_reply_and_no_state_but_those_that_were_on_it(
    cluster: Cluster,
) -> None:
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with RayGrid(remembering(), CLIENTS, Resources(ray_address=cluster.address)) as grid:
        while grid._workers.starting:
            grid.pull_messages([])
        first = ask(grid)
        assert {row["calls"] for row in first.values()} == {1}
        assert len({row["node"] for row in first.values()}) == 2
        second = ask(grid, lambda: cluster.remove_node(other, allow_graceful=False))
        third = ask(grid)
    assert set(second) == set(third) == set(range(CLIENTS))
    assert len({row["node"] for row in third.values()}) == 1
    for partition, row in second.items():
        if partition % 2 == 0:  # small states are with the driver
            assert row["calls"] == 2
        assert third[partition]["calls"] in (row["calls"] + 1, 1)
        if partition % 2 == 0:
            assert third[partition]["calls"] == 3


def where_app() -> ClientApp:
    """Says on which GPU of which node it runs, for a while."""
    app = ClientApp()

    @app.query()
    def say(message: Message, context: Context) -> Message:
        here = ray.get_runtime_context()
        gpus = here.get_accelerator_ids()["GPU"]
        time.sleep(1.0)
        told = ConfigRecord({"node": here.get_node_id(), "gpu": ",".join(gpus)})
        return Message(RecordDict({"told": told}), reply_to=message)

    return app


@pytest.mark.parametrize("classes", [{}, {range(2): Resources(num_cpus=1, num_gpus=1)}])
def test_all_gpus_of_both_nodes_are_in_use(cluster: Cluster, classes: Any) -> None:
    cluster.add_node(num_cpus=4, num_gpus=2)
    cluster.add_node(num_cpus=4, num_gpus=1)
    cluster.wait_for_nodes()
    resources = Resources(num_cpus=1, num_gpus=0.5, ray_address=cluster.address)
    with RayGrid(where_app(), CLIENTS, resources, classes=classes) as grid:
        while grid._workers.starting:
            grid.pull_messages([])
        rows = ask(grid)
    used = {(row["node"], gpu) for row in rows.values() for gpu in row["gpu"].split(",")}
    assert len(used) == 3
    assert len({node for node, _ in used}) == 2
