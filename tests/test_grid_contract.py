"""What Flower's own tests ask of a Grid, asked of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from apps import remembering_app
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.run import Run
from own_ray import own_ray

from fl_darex.simulation import InProcessGrid, RayGrid
from fl_darex.simulation.grid import SimulatedGrid


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with own_ray(1):
        yield


@pytest.fixture(scope="module", params=[InProcessGrid, RayGrid], ids=lambda kind: kind.__name__)
def grid(request: Any) -> Iterator[SimulatedGrid]:
    found = request.param(remembering_app(), 3)
    yield found
    if isinstance(found, RayGrid):
        found.close()


def messages(grid: SimulatedGrid) -> list[Message]:
    return [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]


def pulled(grid: SimulatedGrid, ids: set[str], count: int) -> list[Message]:
    found: list[Message] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        found += grid.pull_messages(ids)
    return found


def test_a_run_is_taken_and_anything_else_refused(grid: SimulatedGrid) -> None:
    run = Run.create_empty(run_id=grid.run.run_id)
    run.fab_id = "mine/app"
    grid.set_run(run)
    assert grid.run.fab_id == "mine/app"
    with pytest.raises(TypeError, match="run must be a Run, got 61016"):
        grid.set_run(61016)  # type: ignore[arg-type]


def test_all_nodes_are_there_and_online(grid: SimulatedGrid) -> None:
    nodes = list(grid.get_nodes())
    assert [node.node_id for node in nodes] == list(grid.get_node_ids())
    assert {node.status for node in nodes} == {"online"}


def test_a_reply_is_given_out_once_and_to_those_alone_who_ask_for_it(grid: SimulatedGrid) -> None:
    first, *rest = grid.push_messages(messages(grid))
    found = pulled(grid, set(rest), len(rest))
    assert {reply.metadata.reply_to_message_id for reply in found} == set(rest)
    assert list(grid.pull_messages(rest)) == []
    assert len(pulled(grid, {first}, 1)) == 1
    assert list(grid.pull_messages(["nobody's", first])) == []


def test_replies_are_to_the_server_in_the_messages_group_and_run(grid: SimulatedGrid) -> None:
    asked = grid.create_message(RecordDict(), "query", next(iter(grid.get_node_ids())), "round 7")
    (reply,) = grid.send_and_receive([asked], timeout=60)
    data = reply.metadata
    assert (data.run_id, data.group_id, data.message_type) == (grid.run.run_id, "round 7", "query")
    assert (data.src_node_id, data.dst_node_id) == (asked.metadata.dst_node_id, 1)
    assert data.reply_to_message_id == asked.metadata.message_id


def test_no_time_is_no_reply_and_no_wait_and_less_is_refused(grid: SimulatedGrid) -> None:
    list(grid.send_and_receive(messages(grid), timeout=60))
    start = time.monotonic()
    assert list(grid.send_and_receive(messages(grid), timeout=0)) == []
    assert time.monotonic() - start < 30  # Flower's is at once; a grid of one process trains first
    with pytest.raises(ValueError, match="a number of seconds from 0 on, or None, got -1"):
        grid.send_and_receive(messages(grid), timeout=-1)


def test_nothing_to_send_is_nothing_to_wait_for(grid: SimulatedGrid) -> None:
    assert list(grid.send_and_receive([], timeout=None)) == []
    assert list(grid.push_messages([])) == []


def test_a_node_that_fails_is_an_error_reply_with_its_reason(grid: SimulatedGrid) -> None:
    node = next(iter(grid.get_node_ids()))
    content = RecordDict({"fail": ConfigRecord()})
    (reply,) = grid.send_and_receive([Message(content, node, "query")], timeout=60)
    assert reply.has_error() and not reply.has_content()
    assert reply.error.reason == "ValueError: no data here"
    assert reply.metadata.reply_to_message_id


def test_an_answer_is_no_message_to_send(grid: SimulatedGrid) -> None:
    (reply, *_) = grid.send_and_receive(messages(grid), timeout=60)
    with pytest.raises(ValueError, match="Invalid message"):
        grid.push_messages([reply])
