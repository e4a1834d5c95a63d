"""Classes of clients, measured shares and clients out of memory, on a Ray with two GPUs.

Ray gives out the GPUs that it is told of; nothing here computes on one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from own_ray import own_ray

from fl_darex.errors import ConfigError, EngineError
from fl_darex.simulation import RayGrid, Resources, staff
from fl_darex.simulation.memory import HEADROOM, machine_memory

SMALL = Resources(num_cpus=0.5)


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> Iterator[None]:
    with own_ray(4, num_gpus=2, resources={"accel": 1}):
        yield


def placed_app(folder: str = "") -> ClientApp:
    """Says what its worker was given; a client whose partition is told runs out of memory.

    The messages tell partitions with a word each: ``shared``, until it has whole GPUs;
    ``machine``, until its worker is another one; ``always``. After ``assert`` its worker is lost.
    """
    app = ClientApp()

    @app.query()
    @app.train()
    def say(message: Message, context: Context) -> Message:
        partition = str(context.node_config["partition-id"])
        here = ray.get_runtime_context()
        given = here.get_assigned_resources()
        told = message.content.config_records.get("told", {})
        calls = context.state.config_records.setdefault("calls", ConfigRecord({"n": 0}))
        calls["n"] = int(calls["n"]) + 1  # type: ignore[arg-type]
        word = told.get(partition)
        if word == "always" or (word == "shared" and given.get("GPU", 1) < 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")
        if word == "machine" and not (mark := Path(folder, partition)).exists():
            mark.write_text(str(os.getpid()))
            bytearray(1 << 62)
        if word == "assert":
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        time.sleep(0.3 if word != "quick" else 0)
        said = {
            "partition": int(partition),
            "pid": os.getpid(),
            "gpus": ",".join(here.get_accelerator_ids().get("GPU", ())),
            "seen": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "calls": calls["n"],
            **{name: float(amount) for name, amount in given.items()},
        }
        return Message(RecordDict({"said": ConfigRecord(said)}), reply_to=message)

    return app


def started(grid: RayGrid) -> RayGrid:
    """Wait until all workers are there, so that each gets its part."""
    while grid._workers.starting:
        grid.pull_messages([])
    return grid


def said(replies: list[Message]) -> dict[int, dict[str, Any]]:
    rows = [dict(reply.content.config_records["said"]) for reply in replies]
    return {row["partition"]: row for row in rows}


def asked(grid: RayGrid, told: dict[str, Any] | None = None, kind: str = "query") -> list[Message]:
    content = RecordDict({"told": ConfigRecord(told or {})})
    messages = [Message(content, node, kind) for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=240))
    assert len(replies) == len(messages)
    return replies


def test_clients_of_each_class_have_what_it_needs_and_all_gpus_are_in_use() -> None:
    classes = {
        (0,): Resources(num_cpus=0.5, num_gpus=1),
        range(1, 3): Resources(num_cpus=0.5, num_gpus=0.5),
        (3,): Resources(num_cpus=0.25, custom={"accel": 1}),
    }
    with RayGrid(placed_app(), 6, SMALL, classes=classes) as grid:
        rows = said(asked(grid))
        again = said(asked(grid))
    assert rows[0]["GPU"] == 1 and rows[1]["GPU"] == rows[2]["GPU"] == 0.5
    assert {row["gpus"] for row in rows.values()} == {"0", "1", ""}
    assert rows[1]["gpus"] == rows[2]["gpus"] != rows[0]["gpus"]
    assert (rows[3]["CPU"], rows[3]["accel"]) == (0.25, 1)
    for partition in (4, 5):
        assert (rows[partition]["CPU"], rows[partition]["seen"]) == (0.5, "")
        assert "GPU" not in rows[partition] and "accel" not in rows[partition]
    for partition, row in rows.items():  # nobody's worker was replaced
        same = {"calls", "pid"} if partition in (1, 2, 4, 5) else {"calls"}
        assert {k: v for k, v in again[partition].items() if k not in same} == {
            k: v for k, v in row.items() if k not in same
        }
        assert again[partition]["calls"] == 2


def test_a_worker_that_lost_its_gpu_is_replaced_and_costs_one_reply() -> None:
    quick = {str(partition): "quick" for partition in range(6)}
    with RayGrid(placed_app(), 6, Resources(num_cpus=0.5, actors=1)) as grid:
        before = said(asked(grid, quick))
        replies = asked(grid, {**quick, "2": "assert"})
        rows = said([reply for reply in replies if reply.has_content()])
        after = said(asked(grid, quick))
    (error,) = [reply.error.reason for reply in replies if reply.has_error()]
    assert error.startswith("AcceleratorError: CUDA error: device-side assert triggered")
    assert sorted(rows) == [0, 1, 3, 4, 5]
    old, new = {row["pid"] for row in before.values()}, {row["pid"] for row in after.values()}
    assert len(old) == len(new) == 1 and not old & new
    assert {row["calls"] for row in after.values()} == {2, 3} and after[2]["calls"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("actors", [0, 1])
def test_classes_that_do_not_fit_beside_each_other_take_turns(
    actors: int, caplog: pytest.LogCaptureFixture
) -> None:
    classes = {range(2): Resources(num_cpus=4)}
    with RayGrid(placed_app(), 4, Resources(actors=actors), classes=classes) as grid:
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("there is no room for workers of all classes at once: those of the")
        for call in (1, 2):
            rows = said(asked(grid))
            assert {partition: row["CPU"] for partition, row in rows.items()} == {
                0: 4,
                1: 4,
                2: 1,
                3: 1,
            }
            assert {row["calls"] for row in rows.values()} == {call}
            assert len(grid._workers.idle) + len(grid._workers.starting) <= (actors or 4)


@pytest.mark.slow
def test_clients_wait_no_longer_than_a_turn_for_room_that_others_have_work_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(staff, "_TURN", 1.0)
    with RayGrid(placed_app(), 3, classes={(0,): Resources(num_cpus=4)}) as grid:
        large, *small = grid.get_node_ids()
        many = [Message(RecordDict(), node, "query") for node in small for _ in range(40)]
        keys = set(grid.push_messages(many))
        while not any(reply.has_content() for reply in grid.pull_messages(keys)):
            pass
        (one,) = grid.push_messages([Message(RecordDict(), large, "query")])
        before = 0
        while not (found := list(grid.pull_messages({one}))):
            before += len(list(grid.pull_messages(keys)))
    assert said(found)[0]["CPU"] == 4
    assert before < len(keys) - 1


@pytest.mark.slow
def test_fewer_clients_than_shares_are_spread_over_all_gpus() -> None:
    with RayGrid(placed_app(), 4, Resources(num_cpus=0.5, num_gpus=0.1)) as grid:
        rows = said(asked(started(grid)))
    assert {row["gpus"] for row in rows.values()} == {"0", "1"}
    assert {row["GPU"] for row in rows.values()} == {0.5}


def a_third() -> tuple[int, int]:
    """Read this process's memory, against one of three and a half times that."""
    peak, _ = machine_memory()
    return peak, int(3.5 * HEADROOM * peak)


@pytest.mark.slow
def test_the_first_client_is_measured_alone_and_says_how_many_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    resources = Resources(num_cpus=0.5, custom={"accel": a_third})
    with RayGrid(placed_app(), 5, resources) as grid, caplog.at_level(logging.INFO, "flwr"):
        first, second = said(asked(grid)), said(asked(started(grid)))
        third = said(asked(grid, kind="train"))
        fourth = said(asked(grid, kind="train"))
    assert sorted(row["accel"] for row in first.values()) == [0.3333] * 4 + [1]
    assert {row["accel"] for row in second.values()} == {0.3333}
    assert len({row["pid"] for row in second.values()}) == 3
    # Another type of message may need more: its first client is measured, too.
    assert sorted(row["accel"] for row in third.values()) == [0.3333] * 4 + [1]
    assert {row["accel"] for row in fourth.values()} == {0.3333}
    (line,) = [r.getMessage() for r in caplog.records if "headroom" in r.getMessage()]
    assert line.startswith("accel: a client took ") and "3 fit" in line and "0.3333" in line


def test_what_cannot_be_measured_ends_the_run_with_the_way_out() -> None:
    if torch.cuda.is_available():
        pytest.skip("GPU memory can be measured here")
    with (
        RayGrid(placed_app(), 2, Resources(num_cpus=0.5, num_gpus="auto")) as grid,
        pytest.raises(EngineError, match=r"num-gpus = 'auto', but what a client takes cannot be"),
    ):
        asked(grid)


def test_a_client_that_shares_a_gpu_and_runs_out_of_memory_is_run_again_with_a_whole_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RayGrid(placed_app(), 4, Resources(num_cpus=0.5, num_gpus=0.5)) as grid:
        first = said(asked(grid))
        told = {"0": "shared", "1": "always"}
        second = asked(grid, told)
        third = said(asked(grid))
    rows = said([reply for reply in second if not reply.has_error()])
    assert set(rows) == {0, 2, 3}
    assert rows[0]["GPU"] == 1 and {rows[2]["GPU"], rows[3]["GPU"]} == {0.5}
    assert rows[0]["pid"] not in {row["pid"] for row in first.values()}
    (error,) = [reply.error.reason for reply in second if reply.has_error()]
    assert error.startswith(
        "out of memory, also with whole GPUs in a fresh worker: OutOfMemoryError: CUDA out of mem"
    )
    assert "set a smaller train.batch-size" in error and "resources.num-gpus" in error
    lines = [r.getMessage() for r in caplog.records if "ran out of memory" in r.getMessage()]
    assert len(lines) == 2 and "resources.num-gpus (now 0.5)" in lines[0]
    assert {partition: row["calls"] for partition, row in third.items()} == {0: 3, 1: 2, 2: 3, 3: 3}
    assert {row["GPU"] for row in third.values()} == {0.5}


@pytest.mark.slow
def test_a_client_for_which_the_machine_has_too_little_memory_has_it_to_itself(
    tmp_path: Path,
) -> None:
    with RayGrid(placed_app(str(tmp_path)), 3, Resources(num_cpus=1)) as grid:
        first = said(asked(started(grid)))
        rows = said(asked(grid, {"2": "machine"}))
        assert len({row["pid"] for row in first.values()}) == 3
        assert (tmp_path / "2").read_text() in {str(row["pid"]) for row in first.values()}
        assert rows[2]["pid"] not in {row["pid"] for row in first.values()}
        assert {row["calls"] for row in rows.values()} == {2}
        after = said(asked(grid))
    assert not {row["pid"] for row in after.values()} & {row["pid"] for row in first.values()}


def test_a_class_that_fits_nowhere_is_an_error_that_names_its_clients() -> None:
    message = r"resources.num-gpus = 3 of the clients 1-2, but the largest node has 2 GPUs; allowed"
    with pytest.raises(ConfigError, match=message):
        RayGrid(placed_app(), 4, SMALL, classes={(2, 1): Resources(num_gpus=3)})
    with pytest.raises(ConfigError, match=r"custom.tpu = 1, but the largest node has 0 of 'tpu'"):
        RayGrid(placed_app(), 4, Resources(custom={"tpu": 1}))
