"""The ledger over a small Grid: each message once, beside what it would weigh without fl-darex."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from federations import Federation, flower_bytes
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fl_darex.clients import DarexMod
from fl_darex.compression import Terms, Uplink
from fl_darex.flower.ledger import Entry, Ledger, LedgerGrid
from fl_darex.flower.private import adopt_run
from fl_darex.flower.records import packet_of, to_arrays, to_record
from fl_darex.flower.roster import Roster
from fl_darex.masks import keep_threshold

BASE = {
    "body.weight": np.linspace(-1, 1, 30_000, dtype=np.float32).reshape(300, 100),
    "body.bias": np.zeros(100, np.float32),
    "bn.running_var": np.ones(100, np.float64),
    "bn.num_batches_tracked": np.array(7, np.int64),
}
KEPT = keep_threshold(0.99)


class PlainGrid(Federation):
    """Calls a ClientApp in this process; ``lost`` nodes never answer, ``late`` ones not at once."""

    def __init__(
        self, app: ClientApp, clients: int = 3, lost: Iterable[int] = (), late: Iterable[int] = ()
    ) -> None:
        super().__init__(app, clients)
        self._lost, self._late = set(lost), set(late)
        self._held: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.wire: list[int] = []  # what Flower itself sends for each message, as it is pushed

    def _hand_out(self, messages: list[Message]) -> None:
        for message in messages:
            self.sent.append(message)
            self.wire.append(flower_bytes(message))
            partition = self.partitions[message.metadata.dst_node_id]
            if partition not in self._lost:
                place = self._held if partition in self._late else self._done
                place[message.metadata.message_id] = self._reply(message)

    def release(self) -> None:
        """Let the late replies arrive."""
        self._done |= self._held
        self._held = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        self.received.extend(found)
        return found


def client_app(*mods: Any, change: Callable[..., np.ndarray] | None = None) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (name, record), *_ = message.content.array_records.items()
        arrays = {key: (change or trained)(key, value) for key, value in to_arrays(record).items()}
        metrics = MetricRecord({"num-examples": 5, "loss": 0.25})
        return Message(RecordDict({name: to_record(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        raise RuntimeError("no data here")

    return app


def trained(name: str, value: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return (value + rng.normal(size=value.shape)).astype(value.dtype)


def orders(
    grid: Grid,
    round_: int = 1,
    kind: str = "train",
    method: str | None = "dare",
    record: ArrayRecord | None = None,
) -> list[Message]:
    """One message to each node, with the terms of fl-darex in it unless ``method`` is None."""
    record = to_record(BASE) if record is None else record
    messages = []
    for slot, node in enumerate(grid.get_node_ids()):
        config = ConfigRecord({"server-round": round_, "lr": 0.1})
        if method is not None:
            uplink = Uplink(method=method, keep=KEPT, seed=1)
            Terms(uplink=uplink, round=round_, slot=slot).attach(config)
        content = RecordDict({"arrays": record, "config": config})
        messages.append(Message(content, node, kind))
    return messages


def counted(app: ClientApp, **options: Any) -> tuple[LedgerGrid, PlainGrid, Ledger]:
    grid, ledger = PlainGrid(app, **options), Ledger()
    return LedgerGrid(grid, ledger), grid, ledger


# --- every message once -----------------------------------------------------------------------


def test_every_message_and_every_reply_is_counted_once_and_to_the_byte():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    replies = []
    for round_ in (1, 2, 3):
        replies += ledger_grid.send_and_receive(orders(grid, round_), timeout=10)
    assert len(replies) == len(ledger.entries) == 9
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire
    up = {reply.metadata.reply_to_message_id: flower_bytes(reply) for reply in replies}
    assert [entry.up_bytes for entry in ledger.entries] == [
        up[message.metadata.message_id] for message in grid.sent
    ]
    assert not any(entry.failed for entry in ledger.entries)
    assert all(packet_of(next(iter(r.content.array_records.values()))) for r in replies)


def test_the_ledger_passes_every_message_on_as_it_is():
    ledger_grid, grid, _ = counted(client_app(DarexMod()))
    messages = orders(grid)
    contents = [message.content for message in messages]
    replies = list(ledger_grid.send_and_receive(iter(messages), timeout=10))
    assert [a is b for a, b in zip(grid.sent, messages, strict=True)] == [True] * 3
    assert [m.content is c for m, c in zip(messages, contents, strict=True)] == [True] * 3
    assert [a is b for a, b in zip(grid.received, replies, strict=True)] == [True] * 3
    assert all("darex" in message.content["config"] for message in messages)


def test_pushing_and_pulling_apart_counts_the_same():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    ids = list(ledger_grid.push_messages(orders(grid)))
    assert all(entry.failed and entry.up_bytes == 0 for entry in ledger.entries)
    for key in ids:
        assert len(list(ledger_grid.pull_messages([key]))) == 1
        assert list(ledger_grid.pull_messages([key])) == []
    together, other, reference = counted(client_app(DarexMod()))
    together.send_and_receive(orders(other), timeout=10)
    assert ledger.entries == reference.entries


def test_a_reply_that_comes_twice_is_counted_once():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), clients=1)
    told: list[Entry] = []
    ledger_grid._on_reply = told.append
    ids = list(ledger_grid.push_messages(orders(grid)))
    first = list(ledger_grid.pull_messages(ids))
    grid._done[ids[0]] = first[0]
    before = ledger.entries[0].up_bytes
    assert len(list(ledger_grid.pull_messages(ids))) == 1
    assert ledger.entries[0].up_bytes == before
    assert len(told) == 1


def test_a_reply_to_somebody_else_is_passed_on_and_not_counted():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), clients=1)
    ids = list(grid.push_messages(orders(grid)))  # past the ledger
    assert len(list(ledger_grid.pull_messages(ids))) == 1
    assert ledger.entries == []


def test_messages_pushed_before_a_round_are_still_counted_after_it():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), late=[2])
    early = list(ledger_grid.push_messages(orders(grid)[2:]))
    ledger_grid.send_and_receive(orders(grid)[:2], timeout=10)
    grid.release()
    assert len(list(ledger_grid.pull_messages(early))) == 1
    assert ledger.entries[0].up_bytes > 0


def test_no_messages_are_no_entries():
    ledger_grid, _, ledger = counted(client_app())
    assert list(ledger_grid.send_and_receive([], timeout=10)) == []
    assert ledger.entries == []


# --- what the numbers stand for ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["dare", "dense"])
def test_dense_up_is_what_the_same_app_sends_without_the_mod(method):
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    ledger_grid.send_and_receive(orders(grid, method=method), timeout=10)
    plain_grid, other, plain = counted(client_app())
    plain_grid.send_and_receive(orders(other, method=None), timeout=10)
    for with_mod, without in zip(ledger.entries, plain.entries, strict=True):
        assert with_mod.dense_up_bytes == without.up_bytes == without.dense_up_bytes
    if method == "dare":
        entries = BASE["body.weight"].size + BASE["body.bias"].size
        sent = 2 * entries * 0.01 + 2 * 100 + 8  # fp16 survivors, dense statistics, the counter
        assert all(0 <= e.up_bytes - sent < 1500 for e in ledger.entries)
    else:
        assert all(e.up_bytes == e.dense_up_bytes for e in ledger.entries)


def test_dense_down_is_the_same_message_without_the_terms():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    ledger_grid.send_and_receive(orders(grid), timeout=10)
    _, other, _ = counted(client_app())
    other.push_messages(orders(other, method=None))
    assert [entry.dense_down_bytes for entry in ledger.entries] == other.wire
    assert all(80 < e.down_bytes - e.dense_down_bytes < 200 for e in ledger.entries)


def test_without_terms_both_columns_are_equal():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    ledger_grid.send_and_receive(orders(grid, method=None), timeout=10)
    for entry in ledger.entries:
        assert entry.down_bytes == entry.dense_down_bytes
        assert entry.up_bytes == entry.dense_up_bytes


CHUNK = 5 * 1024 * 1024
MODELS = {
    "one scalar": {"s": np.array(1.5, np.float32)},
    "more than a chunk": {"w": np.arange(CHUNK // 4 + 5, dtype=np.float32)},
    "names beyond ASCII": {"größe.层": np.arange(9.0), 'a"b': np.arange(8.0)},
    "many tensors": {f"layer.{i}": np.arange(i + 1, dtype=np.float32) for i in range(200)},
    "equal tensors that training moves apart": {n: np.zeros(50) for n in ("ab", "abc", "a")},
    "half precision": {"w": np.ones((7, 5), np.float16), "v": np.ones(3, np.float64)},
}


@pytest.mark.parametrize("model", MODELS)
def test_dense_up_is_that_of_the_app_without_the_mod_for_any_model(model):
    record = to_record(MODELS[model])
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), clients=1)
    ledger_grid.send_and_receive(orders(grid, record=record), timeout=10)
    plain_grid, other, plain = counted(client_app(), clients=1)
    plain_grid.send_and_receive(orders(other, method=None, record=record), timeout=10)
    assert ledger.entries[0].up_bytes < max(plain.entries[0].up_bytes, 1200)
    assert abs(ledger.entries[0].dense_up_bytes - plain.entries[0].up_bytes) <= 16


@pytest.mark.parametrize(
    "model",
    [
        # A transformer's state_dict lists tied weights under both names.
        {"embedding": np.arange(50_000.0), "lm_head": np.arange(50_000.0)},
        {f"bn{i}.num_batches_tracked": np.array(0) for i in range(20)},
    ],
    ids=["tied", "counters"],
)
def test_dense_up_counts_tensors_that_stay_equal_once(model):
    def alike(name: str, value: np.ndarray) -> np.ndarray:
        return value + 1

    record = to_record(model)
    ledger_grid, grid, ledger = counted(client_app(DarexMod(), change=alike), clients=1)
    ledger_grid.send_and_receive(orders(grid, record=record), timeout=10)
    plain_grid, other, plain = counted(client_app(change=alike), clients=1)
    plain_grid.send_and_receive(orders(other, method=None, record=record), timeout=10)
    counted_dense, really_dense = ledger.entries[0].dense_up_bytes, plain.entries[0].up_bytes
    assert abs(counted_dense - really_dense) <= 16


def test_an_array_that_is_not_numpys_is_counted_and_passed_on():
    record = ArrayRecord({"w": Array("bfloat16", (3,), "my.bf16", b"\0" * 6)})
    ledger_grid, grid, ledger = counted(client_app(), clients=1)
    ids = list(ledger_grid.push_messages(orders(grid, method=None, record=record)))
    assert len(ids) == len(grid.sent) == 1
    assert ledger.entries[0].down_bytes == grid.wire[0]


# --- replies that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [3, 4, 5])
def test_an_error_that_no_client_sent_is_a_failure_without_bytes(code):
    told: list[Entry] = []

    class Gone(Federation):
        def _reply(self, message: Message) -> Message:
            return Message(Error(code=code, reason="the node is gone"), reply_to=message)

    ledger = Ledger()
    grid = LedgerGrid(Gone(client_app(), 2), ledger, told.append)
    assert all(reply.has_error() for reply in grid.send_and_receive(orders(grid), timeout=1))
    assert [(e.failed, e.up_bytes, e.dense_up_bytes) for e in told] == [(True, 0, 0)] * 2
    assert min(entry.down_bytes for entry in ledger.entries) > 0


def test_an_error_reply_is_counted_as_failed_with_its_own_bytes():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    replies = ledger_grid.send_and_receive(orders(grid, kind="evaluate"), timeout=10)
    sizes = {reply.metadata.src_node_id: flower_bytes(reply) for reply in replies}
    assert len(sizes) == 3
    for entry in ledger.entries:
        assert (entry.failed, entry.kind) == (True, "evaluate")
        assert entry.up_bytes == entry.dense_up_bytes == sizes[entry.client] > 0


def test_a_reply_that_never_comes_is_failed_and_weighs_nothing():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), lost=[1])
    start = time.monotonic()
    replies = list(ledger_grid.send_and_receive(orders(grid), timeout=0.3))
    assert 0.3 <= time.monotonic() - start < 3
    assert len(replies) == 2
    assert [entry.failed for entry in ledger.entries] == [False, True, False]
    assert ledger.entries[1].up_bytes == ledger.entries[1].dense_up_bytes == 0
    assert ledger.entries[1].down_bytes == grid.wire[1]


def test_a_reply_that_comes_after_the_timeout_is_not_counted_in_another_round():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), late=[0])
    assert len(list(ledger_grid.send_and_receive(orders(grid, 1), timeout=0.05))) == 2
    late = [grid.sent[0].metadata.message_id]
    grid.release()
    assert len(list(ledger_grid.pull_messages(late))) == 1
    first = ledger.entries[0]
    assert (first.failed, first.up_bytes, first.round) == (True, 0, 1)
    grid._late.clear()
    ledger_grid.send_and_receive(orders(grid, 2), timeout=10)
    assert [entry.failed for entry in ledger.of_round(2)] == [False] * 3
    assert [entry.failed for entry in ledger.of_round(1)] == [True, False, False]


def test_a_timeout_of_zero_sends_and_waits_for_nothing():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    assert list(ledger_grid.send_and_receive(orders(grid), timeout=0.0)) == []
    assert [entry.failed for entry in ledger.entries] == [True] * 3


def test_each_reply_is_told_once_it_is_counted():
    told: list[Entry] = []
    grid, ledger = PlainGrid(client_app(DarexMod()), lost=[1]), Ledger()
    seen = []
    ledger_grid = LedgerGrid(grid, ledger, lambda e: (told.append(e), seen.append(e.up_bytes)))
    ledger_grid.send_and_receive(orders(grid), timeout=0.05)
    # Replies arrive in any order; the entry is the ledger's own, complete when it is told.
    assert {id(entry) for entry in told} == {id(ledger.entries[0]), id(ledger.entries[2])}
    assert seen == [entry.up_bytes for entry in told]
    assert len(seen) == 2 and min(seen) > 0


def test_a_grid_that_fails_to_push_leaves_no_entry():
    class Broken(PlainGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise ConnectionError("no network")

    ledger = Ledger()
    broken = LedgerGrid(Broken(client_app()), ledger)
    with pytest.raises(ConnectionError, match="no network"):
        broken.push_messages(orders(broken))
    assert ledger.entries == []


# --- names and rounds -------------------------------------------------------------------------


def test_entries_carry_the_round_of_the_message():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    for round_ in (1, 5):
        ledger_grid.send_and_receive(orders(grid, round_), timeout=10)
    assert [entry.round for entry in ledger.entries] == [1] * 3 + [5] * 3
    assert [entry.client for entry in ledger.of_round(5)] == list(grid.get_node_ids())
    assert ledger.of_round(2) == []


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"config": ConfigRecord({"lr": 0.1})}),
        RecordDict({"config": ConfigRecord({"server-round": "one"})}),
        RecordDict({"metrics": MetricRecord({"server-round": 3})}),
    ],
)
def test_a_message_that_tells_no_round_belongs_to_round_0(content):
    ledger_grid, grid, ledger = counted(client_app())
    ledger_grid.push_messages([Message(content, next(iter(grid.get_node_ids())), "train")])
    assert (ledger.entries[0].round, ledger.entries[0].kind) == (0, "train")


def test_the_round_is_found_in_any_configuration():
    content = RecordDict({"a": ConfigRecord(), "b": ConfigRecord({"server-round": 4})})
    ledger_grid, grid, ledger = counted(client_app())
    ledger_grid.push_messages([Message(content, next(iter(grid.get_node_ids())), "train")])
    assert ledger.entries[0].round == 4


def test_the_handshake_has_its_own_kind_and_is_named_by_partition_afterwards():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), clients=4)
    nodes = list(grid.get_node_ids())
    roster = Roster(ledger.partition_of)
    assert roster.update(ledger_grid, 10) == nodes
    assert [entry.kind for entry in ledger.entries] == ["handshake"] * 4
    assert [entry.round for entry in ledger.entries] == [0] * 4
    assert sorted(entry.client for entry in ledger.entries) == sorted(nodes)
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire
    up = {reply.metadata.src_node_id: flower_bytes(reply) for reply in grid.received}
    assert [entry.up_bytes for entry in ledger.entries] == [up[e.client] for e in ledger.entries]
    for entry in ledger.entries:
        assert entry.up_bytes == entry.dense_up_bytes
        assert entry.down_bytes > entry.dense_down_bytes  # the question itself is ours
    ledger.name_clients()
    ledger.name_clients()  # twice is once
    assert sorted(entry.client for entry in ledger.entries) == [0, 1, 2, 3]
    ledger_grid.send_and_receive(orders(grid), timeout=10)
    assert [entry.client for entry in ledger.entries[4:]] == [0, 1, 2, 3]
    assert roster.update(ledger_grid, 10) == nodes
    assert len(ledger.entries) == 8  # nobody was asked again


def test_a_node_that_does_not_answer_the_handshake_gets_the_lowest_free_slot():
    ledger_grid, _, ledger = counted(client_app(DarexMod()), clients=3, lost=[0])
    Roster(ledger.partition_of).update(ledger_grid, 0.05)
    ledger.name_clients()
    assert sorted(entry.client for entry in ledger.entries) == [0, 1, 2]
    assert [entry.client for entry in ledger.entries if entry.failed] == [0]


# --- the descriptions that are made once ------------------------------------------------------


def test_a_model_that_changes_between_rounds_is_described_anew():
    ledger_grid, grid, ledger = counted(client_app())
    record = to_record({"w": np.arange(100.0)})
    for round_, size in enumerate((100, 5000, 10), start=1):
        record["w"] = Array(np.arange(float(size)))  # the same record object, another content
        ledger_grid.push_messages(orders(grid, round_, method=None, record=record))
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire


def test_a_model_made_where_an_older_one_was_is_described_anew():
    ledger_grid, grid, ledger = counted(client_app(), clients=1)
    for size in range(1, 60):
        # The record dies after each push, so the next one may have its id().
        record = to_record({"w": np.arange(float(size * 37))})
        ledger_grid.push_messages(orders(grid, method=None, record=record))
        grid.sent.clear()
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire


def test_messages_of_one_push_may_hold_different_models():
    ledger_grid, grid, ledger = counted(client_app())
    mixed = [
        orders(grid, method=None, record=to_record({"w": np.arange(float(10**i))}))[i]
        for i in range(3)
    ]
    ledger_grid.push_messages(mixed)
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire
    assert len(set(grid.wire)) == 3


def test_what_the_records_of_a_message_share_is_counted_once():
    ledger_grid, grid, ledger = counted(client_app())
    model, head = to_record(BASE), to_record({"head": BASE["body.weight"]})
    for message in (messages := orders(grid, method=None, record=model)):
        message.content["anchor"], message.content["head"] = to_record(BASE), head
    ledger_grid.push_messages(messages)
    assert [entry.down_bytes for entry in ledger.entries] == grid.wire
    assert grid.wire[0] < 1.1 * sum(array.nbytes for array in BASE.values())


def test_a_model_is_looked_at_once_a_push_however_many_clients_get_it():
    class Watched(ArrayRecord):
        looks = 0

        def values(self) -> Any:
            Watched.looks += 1
            return super().values()

    class Silent(PlainGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return ["" for _ in messages]

    looks = []
    for clients in (1, 50):
        Watched.looks = 0
        grid = Silent(client_app(), clients=clients)
        messages = orders(grid, record=Watched(dict(to_record(BASE))))
        LedgerGrid(grid, Ledger()).push_messages(messages)
        looks.append(Watched.looks)
    assert looks[0] == looks[1] > 0


def test_the_grid_itself_shows_through():
    ledger_grid, grid, _ = counted(client_app())
    assert list(ledger_grid.get_node_ids()) == list(grid.get_node_ids())
    assert [node.node_id for node in ledger_grid.get_nodes()] == list(grid.get_node_ids())
    assert ledger_grid.run is grid.run
    run = adopt_run("another")
    ledger_grid.set_run(run)
    assert grid.run is run


def test_entries_come_back_from_columns_as_they_were() -> None:
    entries = [
        Entry(round=1, client=2**64 - 1, kind="handshake", down_bytes=2**40, up_bytes=3),
        Entry(round=2, client=0, kind="train", down_bytes=5, held_bytes=7, failed=False),
    ]
    ledger, other = Ledger(), Ledger()
    for entry in entries:
        ledger.add(entry)
    other.restore(ledger.state())
    assert other.entries == entries
    assert [*map(type, astuple(other.entries[0]))] == [*map(type, astuple(entries[0]))]
    other.restore(Ledger().state())
    assert other.entries == []


def test_rounds_that_are_over_are_kept_as_numbers_and_told_as_entries():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()))
    before = len(gc_entries())
    for round_ in (1, 2, 3):
        list(ledger_grid.send_and_receive(orders(grid, round_), timeout=10))
        assert len(ledger.of_round(round_)) == 3
        assert len(gc_entries()) == before + 3
    assert [entry.round for entry in ledger.entries] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [entry.up_bytes > 0 and not entry.failed for entry in ledger.of_round(1)] == [True] * 3
    other = Ledger()
    other.restore(ledger.state())
    assert other.entries == ledger.entries
    assert repr(ledger) == repr(other) == "Ledger(<9 entries>)"


def test_a_reply_that_may_still_come_keeps_its_round_open():
    ledger_grid, grid, ledger = counted(client_app(DarexMod()), clients=1)
    first = list(ledger_grid.push_messages(orders(grid, 1)))
    list(ledger_grid.send_and_receive(orders(grid, 2), timeout=10))
    assert [entry.failed for entry in ledger.entries] == [True, False]
    list(ledger_grid.pull_messages(first))
    assert [entry.failed for entry in ledger.entries] == [False, False]


def gc_entries() -> list[Entry]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Entry]
