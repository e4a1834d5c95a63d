from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from apps import BASE, numpy_app, remembering_app, server_app, step_of
from federations import ask, calls, rounds
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from own_ray import own_ray

from fl_darex.clients import DarexMod
from fl_darex.errors import ConfigError, EngineError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import InProcessGrid, RayGrid, Resources, simulate
from fl_darex.simulation.parcels import unpack
from fl_darex.strategies import DarexStrategy, SecureAggregation


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    """One Ray for the module; grids must neither need their own nor stop this one."""
    with own_ray(2):
        yield


def reporting_app() -> ClientApp:
    """Answers a query with what the worker sees."""
    app = ClientApp()

    @app.query()
    def report(message: Message, context: Context) -> Message:
        context.state["calls"] = MetricRecord(
            {"n": int(context.state.metric_records.get("calls", {"n": 0})["n"]) + 1}  # type: ignore
        )
        seen = MetricRecord(
            {
                "partition": int(context.node_config["partition-id"]),
                "partitions": int(context.node_config["num-partitions"]),
                "pid": os.getpid(),
                "calls": context.state["calls"]["n"],  # type: ignore[index]
                "names": [len(name) for name in message.content],
            }
        )
        # Apps may empty what they get; the next client must not notice.
        for record in message.content.array_records.values():
            seen["sum"] = float(sum(a.numpy().sum() for a in record.values()))
            record.clear()
        return Message(RecordDict({"seen": seen}), reply_to=message)

    return app


def sleeping_app() -> ClientApp:
    """Takes long enough that each client is a call of its own; says which process it is."""
    app = ClientApp()

    @app.query()
    def sleep(message: Message, context: Context) -> Message:
        told = message.content.config_records.get("sleep", {})
        time.sleep(float(told.get(str(context.node_config["partition-id"]), 0.2)))
        return Message(RecordDict({"at": ConfigRecord({"pid": os.getpid()})}), reply_to=message)

    return app


def pids(replies: list[Message]) -> set[Any]:
    return {reply.content["at"]["pid"] for reply in replies}  # type: ignore[index]


def all_there(grid: RayGrid) -> None:
    """Wait until all workers have started, whatever that takes here."""
    while grid._workers.starting:
        grid.pull_messages([])


def seen(replies: list[Message]) -> list[dict[str, Any]]:
    return [dict(reply.content.metric_records["seen"]) for reply in replies]


def test_every_node_has_its_own_partition() -> None:
    with RayGrid(reporting_app(), clients=5) as grid:
        rows = seen(ask(grid))
    assert sorted(row["partition"] for row in rows) == list(range(5))
    assert {row["partitions"] for row in rows} == {5}


def test_no_more_workers_than_resources_allow_and_they_are_kept() -> None:
    for actors in (2, 1):
        with RayGrid(sleeping_app(), 6, Resources(num_cpus=1, actors=actors)) as grid:
            all_there(grid)
            first, second = (pids(ask(grid)) for _ in range(2))
        assert len(first) == actors
        assert first == second


def test_a_fraction_of_a_core_gives_more_workers() -> None:
    with RayGrid(reporting_app(), 4, Resources(num_cpus=0.5)) as grid:
        all_there(grid)
        assert len(grid._workers.idle) == 4


def test_a_clients_state_follows_it_from_worker_to_worker() -> None:
    with RayGrid(reporting_app(), 5) as grid:
        for call in (1, 2, 3):
            assert {row["calls"] for row in seen(ask(grid))} == {call}


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_model_of_a_round_goes_into_the_object_store_once_and_a_small_one_not_at_all(
    size: int,
) -> None:
    arrays = to_record({"a": np.ones(size, np.float32), "b": np.ones(3, np.float32)})
    content = RecordDict({"first": MetricRecord({"x": 1}), "model": arrays})
    with RayGrid(reporting_app(), 5) as grid:
        messages = [Message(content, node, "query") for node in grid.get_node_ids()]
        stored: list[Any] = []
        put = ray.put
        ray.put = lambda value, **kw: stored.append(value) or put(value, **kw)  # type: ignore
        try:
            replies = list(grid.send_and_receive(messages, timeout=60))
        finally:
            ray.put = put
    assert [unpack(parcel) for parcel in stored] == [arrays] * (size > 10)
    rows = seen(replies)
    # Every client saw the whole model, although each one emptied the record it was given.
    assert {row["sum"] for row in rows} == {size + 3.0}
    assert all(row["names"] == [5, 5] for row in rows)
    assert list(content) == ["first", "model"] and len(arrays) == 2


def fragile_app() -> ClientApp:
    app = ClientApp()

    @app.query()
    def fall(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        if partition == 1:
            raise ValueError("no data here")
        if partition == 2:
            os._exit(1)
        return Message(RecordDict(), reply_to=message)

    return app


def test_a_client_that_raises_and_one_that_kills_its_worker_cost_one_reply_each() -> None:
    with RayGrid(fragile_app(), 6, Resources(num_cpus=1)) as grid:
        for _ in range(2):  # a dead worker is not used again
            replies = {grid.partitions[r.metadata.src_node_id]: r for r in ask(grid)}
            failed = {index for index, reply in replies.items() if reply.has_error()}
            assert set(replies) == set(range(6))
            assert failed == {1, 2}
            assert replies[1].error.reason == "ValueError: no data here"
            assert "the worker died" in replies[2].error.reason


@pytest.mark.parametrize("die", [False, True])
def test_a_client_that_raises_or_dies_keeps_the_state_that_it_had_before(die: bool) -> None:
    with RayGrid(remembering_app(), 2) as grid:
        assert calls(ask(grid)) == [1, 1]
        fail = RecordDict({"fail": ConfigRecord({"die": die})})
        assert all(reply.has_error() for reply in ask(grid, fail))
        assert calls(ask(grid)) == [2, 2]
        assert [set(state) for state in grid._states().values()] == [{"calls"}] * 2


def test_messages_to_one_client_are_answered_one_after_the_other() -> None:
    with RayGrid(remembering_app(), 2) as grid:
        node = next(iter(grid.get_node_ids()))
        messages = [Message(RecordDict(), node, "query") for _ in range(4)]
        assert calls(grid.send_and_receive(messages, timeout=60)) == [1, 2, 3, 4]


def test_clients_states_go_from_one_engine_to_another() -> None:
    first = InProcessGrid(remembering_app(), 3)
    ask(first)
    with RayGrid(remembering_app(), 3) as grid:
        grid.restore(first.state())
        assert calls(ask(grid)) == [2, 2, 2]
        state = grid.state()
    first.restore(state)
    assert calls(ask(first)) == [3, 3, 3]


def test_a_client_that_hangs_costs_its_own_reply_in_every_round_and_nothing_is_run_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Six clients on two workers; the first one sleeps for longer than any round.

    From the second round on it is last, so that the others need not wait for its new worker.
    """
    content = RecordDict({"sleep": ConfigRecord({"0": 600.0})})
    with RayGrid(sleeping_app(), 6) as grid:
        all_there(grid)
        for _ in range(3):
            with caplog.at_level("WARNING"):
                replies = ask(grid, content, timeout=8)
            answered = {grid.partitions[reply.metadata.src_node_id] for reply in replies}
            assert answered == {1, 2, 3, 4, 5}
            assert (grid.running, grid.waiting, grid._done) == (0, 0, {})
            assert "1 clients did not answer in time: 0 had no turn" in caplog.records[-1].message
        assert len(ask(grid)) == 6


def test_what_nobody_waits_for_any_more_is_not_run_and_leaves_no_reply() -> None:
    with RayGrid(sleeping_app(), 6, Resources(actors=1)) as grid:
        all_there(grid)
        sleep = {str(client): 1.0 for client in range(6)}
        assert 1 <= len(ask(grid, RecordDict({"sleep": ConfigRecord(sleep)}), timeout=2.5)) <= 2
        started = time.monotonic()
        assert len(ask(grid, timeout=60)) == 6
        assert not grid._done
    assert time.monotonic() - started < 50


def test_nobody_waits_behind_a_client_that_is_slower_than_it_was_before() -> None:
    """Clients of no time go to a worker together; one of them then sleeps."""
    none = {str(client): 0.0 for client in range(20)}
    with RayGrid(sleeping_app(), 20, Resources(actors=2)) as grid:
        all_there(grid)
        for _ in range(2):
            assert len(ask(grid, RecordDict({"sleep": ConfigRecord(none)}))) == 20
        for _ in range(2):
            replies = ask(grid, RecordDict({"sleep": ConfigRecord(none | {"7": 600.0})}), timeout=8)
            answered = {grid.partitions[reply.metadata.src_node_id] for reply in replies}
            assert answered == set(range(20)) - {7}


def test_a_state_is_what_it_was_before_a_message_that_was_given_up() -> None:
    app = ClientApp()

    @app.query()
    def remember(message: Message, context: Context) -> Message:
        before = int(context.state.metric_records.get("calls", {"n": 0})["n"])  # type: ignore
        context.state["calls"] = MetricRecord({"n": before + 1})
        time.sleep(600 if "hang" in message.content else 0)
        return Message(RecordDict({"calls": MetricRecord({"n": before})}), reply_to=message)

    with RayGrid(app, 2) as grid:
        assert calls(ask(grid)) == [0, 0]
        assert ask(grid, RecordDict({"hang": ConfigRecord()}), timeout=2) == []
        assert calls(ask(grid)) == [1, 1]


def test_a_message_to_a_node_that_is_not_there_costs_the_others_nothing() -> None:
    for grid in (InProcessGrid(reporting_app(), 2), RayGrid(reporting_app(), 2)):
        nodes = [*grid.get_node_ids(), 42]
        messages = [Message(RecordDict(), node, "query") for node in nodes]
        assert len(list(grid.send_and_receive(messages, timeout=60))) == 2
        assert len(list(grid.push_messages(messages))) == 2
        wrong = Message(RecordDict(), 42, "query")
        wrong.metadata.__dict__["_run_id"] = 7
        with pytest.raises(ValueError, match="Invalid message"):
            grid.push_messages([wrong])
        if isinstance(grid, RayGrid):
            grid.close()


def test_replies_have_an_id_of_their_own_whatever_order_they_come_in() -> None:
    ids = []
    for grid in (InProcessGrid(reporting_app(), 3), RayGrid(reporting_app(), 3)):
        replies = sorted(ask(grid), key=lambda reply: grid.partitions[reply.metadata.src_node_id])
        ids.append([reply.metadata.message_id for reply in replies])
        if isinstance(grid, RayGrid):
            grid.close()
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3 and {len(key) for key in ids[0]} == {64}


@pytest.mark.parametrize("value", [None, 3])
def test_an_app_that_answers_no_message_is_an_error_reply_that_names_the_function(
    value: Any,
) -> None:
    with RayGrid(lambda message, context: value, 2) as grid:
        reasons = {reply.error.reason for reply in ask(grid)}
    kind = type(value).__name__
    assert reasons == {
        f"the ClientApp's function for 'query' messages returned {kind}, not a Message; end it "
        "with: return Message(content, reply_to=message)"
    }


@pytest.mark.parametrize("stop", ["SystemExit", "KeyboardInterrupt", "unpicklable"])
def test_a_client_that_stops_or_answers_what_cannot_travel_leaves_its_worker_alive(
    stop: str,
) -> None:
    app = ClientApp()

    @app.query()
    def end(message: Message, context: Context) -> Message:
        reply = Message(RecordDict({"pid": ConfigRecord({"pid": os.getpid()})}), reply_to=message)
        if "stop" not in message.content:
            return reply
        context.state["half"] = ConfigRecord()
        if stop == "SystemExit":
            raise SystemExit(3)
        if stop == "KeyboardInterrupt":
            raise KeyboardInterrupt
        reply.metadata.__dict__["_group_id"] = lambda: None
        return reply

    def where() -> set[Any]:
        return {reply.content["pid"]["pid"] for reply in ask(grid)}  # type: ignore[index]

    with RayGrid(app, 2, Resources(actors=1)) as grid:
        before = where()
        failed = ask(grid, RecordDict({"stop": ConfigRecord()}))
        assert [reply.has_error() for reply in failed] == [True, True]
        assert stop in failed[0].error.reason or "pickle" in failed[0].error.reason
        assert where() == before
        assert not any(map(len, grid._states().values()))


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("no_such_module:app", "No module named 'no_such_module'"),
        ("apps:no_such_app", "no_such_app"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_one_error_with_its_cause(app: str, words: str) -> None:
    with RayGrid(app, 4) as grid, pytest.raises(EngineError) as found:
        ask(grid)
    assert str(found.value).startswith(f"no worker can load {app}: ")
    assert words in str(found.value)


def test_a_module_that_kills_whoever_imports_it_ends_the_run_and_not_the_patience() -> None:
    with RayGrid("apps_deadly:app", 2) as grid, pytest.raises(EngineError) as found:
        ask(grid)
    assert str(found.value).startswith("3 workers died while they loaded apps_deadly:app: ")


def test_a_large_state_follows_its_client_and_small_ones_too() -> None:
    app = ClientApp()

    @app.query()
    def grow(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        before = context.state.array_records.get("big")
        seen = int(to_arrays(before)["w"][-1]) if before else 0
        size = 100_000 if partition else 10
        context.state["big"] = to_record({"w": np.full(size, seen + 1, np.float32)})
        return Message(RecordDict({"calls": MetricRecord({"n": seen})}), reply_to=message)

    with RayGrid(app, 4) as grid:
        for call in (0, 1, 2):
            assert calls(ask(grid)) == [call] * 4
        states = grid.state()
    other = InProcessGrid(app, 4)
    other.restore(states)
    assert calls(ask(other)) == [3] * 4


def test_workers_that_are_killed_from_outside_cost_no_reply() -> None:
    sleep = RecordDict({"sleep": ConfigRecord({str(client): 0.4 for client in range(8)})})
    with RayGrid(sleeping_app(), 8) as grid:
        all_there(grid)
        workers = pids(ask(grid))
        messages = [Message(sleep, node, "query") for node in grid.get_node_ids()]
        waiting = set(grid.push_messages(messages))
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        replies: list[Message] = []
        while len(replies) < 8:
            replies += grid.pull_messages(waiting)
    assert not any(reply.has_error() for reply in replies)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(num_gpus=64), r"resources.num-gpus = 64, but the largest node has 0 GPUs"),
        (Resources(num_cpus=64), r"resources.num-cpus = 64, but the largest node has 2 cores"),
    ],
)
def test_resources_that_are_not_there_are_a_clear_error(resources: Resources, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayGrid(reporting_app(), 2, resources)


def test_zero_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="clients must be 1 or more, got 0"):
        RayGrid(reporting_app(), 0)


def test_any_server_app_runs_unchanged_and_gets_its_run_config() -> None:
    app = ServerApp()
    told: list[Any] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        told.append((len(list(grid.get_node_ids())), dict(context.run_config)))
        told.append(len(ask(grid)))

    simulate(app, reporting_app(), clients=3, run_config={"rounds": 2})
    assert told == [(3, {"rounds": 2}), 3]
    assert ray.is_initialized()  # it was there before


@pytest.mark.parametrize("actors", [1, 2])
def test_flowers_fedavg_and_ours_run_on_it_with_equal_bits_for_any_number_of_workers(
    actors: int,
) -> None:
    def final(strategy: Any, app: ClientApp) -> dict[str, np.ndarray]:
        results: list[Any] = []
        simulate(server_app(strategy, 2, results), app, clients=4, resources=resources)
        return to_arrays(results[0].arrays)

    resources = Resources(actors=actors)
    plain = final(FedAvg(min_train_nodes=4), numpy_app())
    ours = final(DarexStrategy(FedAvg(min_train_nodes=4), p=0.0, values="fp32"), pruned())
    for name in BASE:
        np.testing.assert_allclose(ours[name], plain[name], rtol=0, atol=2e-6)
    again = final(DarexStrategy(FedAvg(min_train_nodes=4), p=0.0, values="fp32"), pruned())
    assert all(ours[name].tobytes() == again[name].tobytes() for name in BASE)


def pruned() -> ClientApp:
    return numpy_app([DarexMod()])


def test_secure_aggregation_outlives_a_drop_out_because_actors_keep_clients_states() -> None:
    def losing(message: Message, context: Context, call_next: Any) -> Message:
        stages = [str(c.get("darex.secure")) for c in message.content.config_records.values()]
        if context.node_config["partition-id"] == 3 and '"stage":"masked"' in stages[0]:
            raise TimeoutError("gone")
        return call_next(message, context)

    asked = SecureAggregation(range=0.06, max_weight=8, bits=24)
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=5, min_available_nodes=5)
    strategy = DarexStrategy(inner, p=0.0, mask="round", downlink_values="fp32", secure=asked)
    with RayGrid(numpy_app([losing, DarexMod()]), 5) as grid:
        found = to_arrays(rounds(strategy, grid, 1).arrays)
    assert strategy.counted == 4
    weights = {client: client + 1 for client in (0, 1, 2, 4)}
    for name, base in BASE.items():
        steps = sum(w * step_of(client, 1, base.shape) for client, w in weights.items())
        # Each client rounds to a multiple of range * max_weight / levels, over the sum of weights.
        step = asked.range * asked.max_weight / asked.levels / 11
        assert np.abs(found[name] - base - steps / 11).max() <= 4 * step + 1e-6


def test_a_mod_that_answers_its_own_reply_is_an_error_of_that_client_and_not_a_long_wait() -> None:
    local = LocalDpMod(clipping_norm=1.0, sensitivity=0.1, epsilon=1.0, delta=1e-5)
    strategy = DarexStrategy(FedAvg(fraction_evaluate=0.0), p=0.9)
    with RayGrid(numpy_app([local, DarexMod()]), 2) as grid:  # the wrong order
        rounds(strategy, grid, 1)
    assert strategy.counted == 0
    failed = [entry for entry in strategy.ledger.entries if entry.kind == "train" and entry.failed]
    assert len(failed) == 2
