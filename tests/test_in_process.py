"""The grid without an engine, as the tests of federations use it."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from apps import BASE, numpy_app, remembering_app, server_app, step_of
from federations import ask, calls, flower_bytes
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_darex.flower.private import ErrorCode
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import InProcessGrid, simulate_in_process


def test_a_clients_state_stays_from_message_to_message() -> None:
    grid = InProcessGrid(remembering_app(), 3)
    for call in (1, 2, 3):
        assert calls(ask(grid)) == [call] * 3


def test_a_client_that_raises_is_one_error_reply_and_its_state_is_as_before() -> None:
    grid = InProcessGrid(remembering_app(), 2)
    ask(grid)
    failed = ask(grid, RecordDict({"fail": ConfigRecord()}))
    assert [reply.error.reason for reply in failed] == ["ValueError: no data here"] * 2
    assert {reply.error.code for reply in failed} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
    assert calls(ask(grid)) == [2, 2]
    assert [set(state) for state in grid._states().values()] == [{"calls"}] * 2


def test_a_client_out_of_memory_is_an_error_reply_with_the_way_out() -> None:
    app = ClientApp()

    @app.query()
    def take(message: Message, context: Context) -> Message:
        context.state["taken"] = MetricRecord({"n": 1})
        if context.node_config["partition-id"]:
            raise RuntimeError("my training failed") from torch.OutOfMemoryError("CUDA out of memo")
        return Message(RecordDict({"big": MetricRecord({"n": len(bytearray(1 << 62))})}))

    grid = InProcessGrid(app, 2)
    reasons = [reply.error.reason for reply in ask(grid)]
    assert reasons[0].startswith("out of memory: MemoryError; set a smaller train.batch-size")
    assert reasons[1].startswith("out of memory: RuntimeError: my training failed; set a smaller")
    assert grid.state()["states"] == {}


@pytest.mark.parametrize("answer", [None, 3])
def test_an_app_that_answers_no_message_is_an_error_reply(answer: Any) -> None:
    replies = ask(InProcessGrid(lambda message, context: answer, 2))
    kind = type(answer).__name__
    assert all(f"returned {kind}, not a Message" in reply.error.reason for reply in replies)


def test_a_saved_state_is_plain_and_a_new_grid_goes_on_with_it() -> None:
    grid = InProcessGrid(remembering_app(), 3)
    ask(grid), ask(grid)
    state = pickle.loads(pickle.dumps(grid.state()))
    assert {type(value) for value in state["states"].values()} == {bytes}
    assert calls(ask(grid)) == [3, 3, 3]
    other = InProcessGrid(remembering_app(), 3)
    ask(other)
    for _ in range(2):  # what was restored is not changed by what comes after
        other.restore(state)
        replies = ask(other)
        assert calls(replies) == [3, 3, 3]
    assert {int(r.metadata.reply_to_message_id, 16) for r in replies} == {7, 8, 9}


def test_clients_share_no_record_with_each_other_or_with_the_server() -> None:
    """Nor what Flower keeps of a message that it has hashed, which cannot be copied as it is."""
    kept: list[RecordDict] = []

    def spoil(message: Message, context: Context) -> Message:
        record = message.content.array_records["model"]
        assert set(record) == set(BASE)
        record["layer.bias"].__dict__["data"] = b""
        record.pop("head.weight")
        message.content.config_records["asked"]["layers"].append(9)  # type: ignore[union-attr]
        message.metadata.message_type = "query.spoilt"
        context.state["model"] = record
        kept.append(RecordDict({"model": record}))
        flower_bytes(message)
        return Message(kept[-1], reply_to=message)

    content = RecordDict({"model": to_record(BASE), "asked": ConfigRecord({"layers": [1]})})
    grid = InProcessGrid(spoil, 3)
    messages = [Message(content, node, "query") for node in grid.get_node_ids()]
    assert all(map(flower_bytes, messages))
    replies = list(grid.send_and_receive(messages))
    assert content["asked"]["layers"] == [1]  # type: ignore[comparison-overlap,index]
    sent = to_arrays(content.array_records["model"])
    assert all(sent[name].tobytes() == array.tobytes() for name, array in BASE.items())
    assert {message.metadata.message_type for message in messages} == {"query"}
    kept[0]["model"].clear()
    assert all(list(r.content["model"]) == ["layer.weight", "layer.bias"] for r in replies)
    assert all(len(state.array_records["model"]) == 2 for state in grid._states().values())


def test_replies_come_in_the_order_of_the_messages_and_ids_are_as_wide_as_a_deployments() -> None:
    grid = InProcessGrid(remembering_app(), 9)
    messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert {len(message.metadata.message_id) for message in messages} == {64}
    assert list(grid.pull_messages(m.metadata.message_id for m in messages)) == []


def test_a_grid_without_clients_is_refused() -> None:
    with pytest.raises(ValueError, match="clients must be 1 or more, got 0"):
        InProcessGrid(remembering_app(), 0)


def test_both_apps_get_the_run_config_and_an_app_may_be_named() -> None:
    told: list[Any] = []
    client = ClientApp()

    @client.query()
    def tell(message: Message, context: Context) -> Message:
        told.append((dict(context.node_config), dict(context.run_config)))
        return Message(RecordDict(), reply_to=message)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        told.append(dict(context.run_config))
        ask(grid)

    sys.modules["apps"].named = client  # type: ignore[attr-defined]
    context = simulate_in_process(server, "apps:named", clients=2, run_config={"rounds": 2})
    assert dict(context.run_config) == told[0] == {"rounds": 2}
    nodes = [{"partition-id": index, "num-partitions": 2} for index in range(2)]
    assert sorted(told[1:], key=str) == [(node, {"rounds": 2}) for node in nodes]


def test_flowers_fedavg_runs_on_it_unchanged() -> None:
    results: list[Any] = []
    simulate_in_process(
        server_app(FedAvg(min_train_nodes=4), 1, results), numpy_app(broken=(1,)), clients=4
    )
    found = to_arrays(results[0].arrays)
    for name, base in BASE.items():
        steps = sum((i + 1) * step_of(i, 1, base.shape) for i in (0, 2, 3))
        np.testing.assert_allclose(found[name], base + steps / 8, rtol=0, atol=2e-6)
    assert isinstance(results[0].arrays, ArrayRecord)


def test_an_error_that_may_have_cost_the_process_its_gpu_says_so() -> None:
    app = ClientApp()

    @app.query()
    def take(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"]:
            raise ValueError("my loss failed") from torch.AcceleratorError("CUDA error: assert")
        return Message(RecordDict(), reply_to=message)

    there, lost = ask(InProcessGrid(app, 2))
    assert there.has_content()
    assert lost.error.reason.startswith("ValueError: my loss failed; if later clients fail, too,")
