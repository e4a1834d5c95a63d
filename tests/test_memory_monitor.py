"""Ray ends a worker because its machine runs low on memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from federations import ask
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from own_ray import own_ray

from fl_darex.simulation import RayGrid, Resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/meminfo"),
]
ROOM = 2 << 30  # bytes that programs may take before one is ended


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A Ray for which the machine is full with 2 GiB more than is used now."""
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    used = sizes["MemTotal"] - sizes["MemAvailable"] + ROOM
    if used + 2 * ROOM > 0.95 * sizes["MemTotal"]:
        pytest.skip("too little memory is free here")
    config = {
        "memory_usage_threshold": used / sizes["MemTotal"],
        "memory_monitor_refresh_ms": 100,
    }
    with own_ray(2, _system_config=config):
        yield


def hungry_app(folder: str) -> ClientApp:
    """Client 0 takes all that it may and more the first time, client 1 every time."""
    app = ClientApp()

    @app.query()
    def take(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        mark = Path(folder, str(partition))
        times = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (times + 1))
        kept = []
        if partition == 1 or (partition == 0 and not times):
            for _ in range(30):
                kept.append(os.urandom(1) * (ROOM // 15))
                time.sleep(0.1)
        said = ConfigRecord({"partition": partition, "times": times, "kept": len(kept)})
        return Message(RecordDict({"said": said}), reply_to=message)

    return app


def test_a_client_whose_worker_ray_ends_for_its_memory_is_run_again_alone_then_reported(
    tmp_path: Path,
) -> None:
    with RayGrid(hungry_app(str(tmp_path)), 3, Resources(actors=1)) as grid:
        replies = ask(grid, timeout=200)
    (error,) = [reply.error.reason for reply in replies if reply.has_error()]
    assert error.startswith("out of memory, also in a fresh worker with a machine to itself: ")
    assert "set a smaller train.batch-size" in error
    rows = [dict(reply.content.config_records["said"]) for reply in replies if reply.has_content()]
    times = {row["partition"]: row["times"] for row in rows}
    assert set(times) == {0, 2} and times[0] >= 1  # type: ignore[operator]
    assert len((tmp_path / "1").read_text()) >= 2
