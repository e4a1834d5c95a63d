"""Clients that share a real GPU: by a fraction, by what the first one takes, and out of memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from own_ray import own_ray

from fl_darex.simulation import RayGrid, Resources

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module", autouse=True)
def one_gpu() -> Iterator[None]:
    with own_ray(4, num_gpus=1):
        yield


def taking_app() -> ClientApp:
    """Takes fractions of the GPU's memory: some that its worker keeps, some for the client."""
    app = ClientApp()
    kept: list[torch.Tensor] = []

    def some(fraction: float) -> torch.Tensor:
        _, total = torch.cuda.mem_get_info()
        return torch.ones(int(fraction * total), dtype=torch.uint8, device="cuda")

    @app.query()
    def take(message: Message, context: Context) -> Message:
        told = message.content.config_records["told"]
        if not kept:
            kept.append(some(float(told.get("keep", 0.0))))  # type: ignore[arg-type]
        partition = str(context.node_config["partition-id"])
        taken = some(float(told.get(partition, told.get("all", 0.01))))  # type: ignore[arg-type]
        time.sleep(1.0)
        said = {
            "partition": int(partition),
            "sum": int(taken[:1000].sum()),
            "pid": os.getpid(),
            "gpus": ",".join(ray.get_runtime_context().get_accelerator_ids()["GPU"]),
            "share": float(ray.get_runtime_context().get_assigned_resources()["GPU"]),
        }
        return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)

    return app


def asked(grid: RayGrid, **told: float) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Return what clients said, by partition, and the errors."""
    while grid._workers.starting:
        grid.pull_messages([])
    content = RecordDict({"told": ConfigRecord(told)})
    messages = [Message(content, node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=240))
    assert len(replies) == len(messages)
    rows = [dict(reply.content["said"]) for reply in replies if reply.has_content()]  # type: ignore
    errors = [reply.error.reason for reply in replies if reply.has_error()]
    return {row["partition"]: row for row in rows}, errors


def test_several_clients_share_a_gpu_by_a_fraction() -> None:
    with RayGrid(taking_app(), 4, Resources(num_cpus=0.5, num_gpus=0.25)) as grid:
        rows, errors = asked(grid, all=0.05)
    assert errors == []
    assert len({row["pid"] for row in rows.values()}) == 4
    assert len({row["gpus"] for row in rows.values()}) == 1
    assert {(row["share"], row["sum"]) for row in rows.values()} == {(0.25, 1000)}


def test_what_the_first_client_takes_says_how_many_share_a_gpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "flwr")
    with RayGrid(taking_app(), 6, Resources(num_cpus=0.5, num_gpus="auto")) as grid:
        first, errors = asked(grid, all=0.22)
        second, errors_later = asked(grid, all=0.22)
    assert errors == errors_later == []
    (line,) = [r.getMessage() for r in caplog.records if "headroom" in r.getMessage()]
    found = re.search(r"took ([\d.]+) of ([\d.]+) GB at its peak .* headroom (\d+) fit", line)
    assert found is not None
    peak, total, slots = float(found[1]), float(found[2]), int(found[3])
    # What the client took, and the CUDA context; four of that and a tenth more fit, or fewer.
    assert 0.22 * total < peak and slots == min(int(total / (1.1 * peak)), 4) >= 1
    share = 10_000 // slots / 10_000
    assert sorted(row["share"] for row in first.values()) == sorted([share] * 5 + [1.0])
    assert {row["share"] for row in second.values()} == {share}
    assert len({row["pid"] for row in second.values()}) == slots


def test_a_client_out_of_memory_is_run_again_with_the_whole_gpu_and_then_reported() -> None:
    with RayGrid(taking_app(), 3, Resources(num_cpus=0.5, num_gpus=0.5)) as grid:
        before, errors = asked(grid, keep=0.3)
        assert errors == [] and len({row["pid"] for row in before.values()}) == 2
        # Beside another worker there are at most 0.4 of the memory; alone there is nearly all.
        rows, errors = asked(grid, **{"keep": 0.01, "1": 0.6, "2": 2.0})
        after, none = asked(grid)
    assert set(rows) == {0, 1}
    assert (rows[0]["share"], rows[1]["share"]) == (0.5, 1.0)
    (error,) = errors
    assert error.startswith("out of memory, also with whole GPUs in a fresh worker: OutOfMemoryEr")
    assert "train.batch-size" in error and "resources.num-gpus" in error
    assert none == [] and {row["share"] for row in after.values()} == {0.5}
