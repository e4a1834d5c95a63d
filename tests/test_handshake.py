"""Which node has which partition, as nodes come, go and come back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, fedavg, listening, rounds
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp.strategy import FedAvg
from hypothesis import example, given
from hypothesis import strategies as st

from fl_darex.clients import DarexMod
from fl_darex.flower.grids import FallbackGrid
from fl_darex.flower.model_note import DELIVERY_KEY, MISSING, Greeting
from fl_darex.flower.private import SERVER_NODE_ID, number, with_content
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.flower.roster import MESSAGE_TYPE, Roster, is_handshake
from fl_darex.strategies import DarexStrategy


class Changing(Federation):
    """Nodes that are connected now, by id, and the partition that each one tells."""

    def __init__(self, app: ClientApp | None = None, **connected: int | None) -> None:
        super().__init__(app or teller(), 1)
        self.connect(**connected)
        self.asked: list[int] = []

    def connect(self, **connected: int | None) -> None:
        self.partitions = {int(name[1:]): told for name, told in connected.items()}

    def _reply(self, message: Message) -> Message:
        if is_handshake(message):
            self.asked.append(message.metadata.dst_node_id)
        return super()._reply(message)


def teller() -> ClientApp:
    app = ClientApp(mods=[DarexMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("the question came through to the app")

    return app


def roster() -> Roster:
    return Roster({})


def test_a_node_that_comes_back_under_a_new_id_takes_its_partition_over():
    one, grid = roster(), Changing(n11=0, n12=1, n13=2)
    assert one.update(grid, 1) == [11, 12, 13]
    grid.connect(n11=0, n13=2, n99=1)
    assert one.update(grid, 1) == [11, 99, 13]
    assert one.partition_of == {11: 0, 99: 1, 13: 2}


def test_a_node_that_comes_back_under_its_old_id_is_not_asked_again():
    one, grid = roster(), Changing(n11=0, n12=1)
    one.update(grid, 1)
    grid.connect(n11=0)
    assert one.update(grid, 1) == [11]
    grid.connect(n11=0, n12=1)
    assert one.update(grid, 1) == [11, 12]
    assert grid.asked == [11, 12]


def test_two_live_nodes_with_one_partition_have_different_slots():
    one, grid = roster(), Changing(n11=0, n12=1, n13=1)
    one.update(grid, 1)
    assert one.partition_of == {11: 0, 12: 1, 13: 2}
    one.update(grid, 1)
    assert one.partition_of == {11: 0, 12: 1, 13: 2}


def test_a_new_id_takes_over_once_the_killed_node_no_longer_counts_as_connected():
    # Flower lists a killed node for up to a minute; its successor may be there before.
    one, grid = roster(), Changing(n11=0, n12=1)
    one.update(grid, 1)
    grid.connect(n11=0, n12=1, n99=1)
    one.update(grid, 1)
    assert one.partition_of == {11: 0, 12: 1, 99: 2}
    grid.connect(n11=0, n99=1)
    assert one.update(grid, 1) == [11, 99]
    assert one.partition_of == {11: 0, 99: 1}
    assert grid.asked == [11, 12, 99]


def test_a_node_that_lost_its_partition_while_it_was_away_is_asked_and_gets_another_slot():
    one, grid = roster(), Changing(n11=0, n12=1)
    one.update(grid, 1)
    grid.connect(n11=0, n99=1)
    one.update(grid, 1)
    grid.connect(n11=0, n12=1, n99=1)
    one.update(grid, 1)
    assert one.partition_of == {11: 0, 99: 1, 12: 2}


def test_a_silent_node_does_not_get_the_partition_of_one_that_is_away(caplog):
    one, grid = roster(), Changing(n11=0, n12=1)
    one.update(grid, 1)
    grid.connect(n12=1, n99=None)
    with listening(caplog):
        one.update(grid, 1)
    assert one.partition_of == {11: 0, 12: 1, 99: 2}
    assert "1 nodes told no partition of their own" in caplog.text


moves = st.lists(
    st.dictionaries(st.integers(1, 6), st.one_of(st.none(), st.integers(0, 3))), max_size=8
)


@given(moves)
@example([{3: 3, 6: 3}, {3: 3, 4: None, 5: 0, 6: 3}, {4: None, 5: 0, 6: 3}])
def test_whoever_comes_and_goes_slots_differ_and_no_partition_stays_with_a_node_that_is_gone(steps):
    one, known = roster(), {}
    for step in steps:
        known = step | known  # a node always tells the same
        connected = {node: known[node] for node in step}
        nodes = one.update(Changing(**{f"n{n}": told for n, told in connected.items()}), 1)
        assert set(nodes) == set(connected)
        assert [one.partition_of[node] for node in nodes] == sorted(
            {one.partition_of[node] for node in nodes}
        )
        holder = {slot: node for node, slot in one.partition_of.items()}
        assert len(holder) == len(one.partition_of)
        assert all(holder[told] in connected for told in connected.values() if told is not None)


def test_a_client_that_died_while_it_sent_its_reply_is_named_in_the_log(caplog):
    class Cut(Federation):
        """Answers for client 1 as Flower does: in the server's own name."""

        def pull_messages(self, message_ids):
            return map(self._cut, super().pull_messages(message_ids))

        def _cut(self, reply):
            answers = "handshake" in reply.content or "darex" in reply.content
            if answers or self.partitions[reply.metadata.src_node_id] != 1:
                return reply
            asked = Message(RecordDict(), SERVER_NODE_ID, "train")
            number(asked, reply.metadata.reply_to_message_id)
            return Message(Error(code=4, reason="objects are unavailable"), reply_to=asked)

    strategy = DarexStrategy(FedAvg(min_train_nodes=3, min_available_nodes=3), p=0.9)
    strategy.strategy.fraction_evaluate = 0.0
    with listening(caplog):
        strategy.start(Cut(numpy_app([DarexMod()]), 3), to_record(BASE), num_rounds=1, timeout=9)
    assert "client 1 does not count this round: objects are unavailable" in caplog.text
    assert strategy.counted == 2


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))


def test_the_answer_of_a_restarted_node_says_what_its_partition_holds(tmp_path):
    told = []
    app = numpy_app([DarexMod()])
    grid = Federation(app, 2)

    class Restarting(DarexStrategy):
        def aggregate_train(self, server_round, replies):
            if server_round == 2:  # the same machine under a new id, in a new process
                grid._app = numpy_app([DarexMod()])
                grid.partitions = {5555 if p == 1 else n: p for n, p in grid.partitions.items()}
            return super().aggregate_train(server_round, replies)

    strategy = Restarting(
        FedAvg(min_train_nodes=2, min_available_nodes=2), p=0.9, on_reply=told.append
    )
    strategy.strategy.fraction_evaluate = 0.0
    strategy.start(grid, to_record(BASE), num_rounds=4, timeout=9)
    down = [entry.down_bytes for entry in told if entry.kind == "train" and entry.client == 1]
    assert len(down) == 4
    assert max(down[1:]) < down[0] / 2  # never the whole model again
    assert not any(entry.failed for entry in told)


# --- apps without a handler for it ----------------------------------------------------------------


def plain_train(*mods: Any) -> ClientApp:
    """An app as people write them: its train function takes the model for granted."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = to_arrays(message.content["arrays"])
        moved = {name: value + np.float32(0.5) for name, value in model.items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(
            RecordDict({"arrays": to_record(moved), "metrics": metrics}), reply_to=message
        )

    return app


class Listening(Federation):
    """Keeps every reply."""

    def __init__(self, app: ClientApp, clients: int = 3) -> None:
        super().__init__(app, clients)
        self.replies: list[Message] = []

    def _reply(self, message: Message) -> Message:
        self.replies.append(super()._reply(message))
        return self.replies[-1]


@pytest.mark.parametrize("downlink", ["update", "server", "dense"])
def test_an_app_with_the_mod_alone_tells_its_partition_and_what_it_holds(downlink):
    grid = Listening(plain_train(DarexMod(base=lambda message, context: BASE)))
    strategy = DarexStrategy(fedavg(clients=3), p=0.9, downlink=downlink)
    rounds(strategy, grid, 2)
    assert strategy.ledger.partition_of == grid.partitions
    assert not any(reply.has_error() for reply in grid.replies)
    asked = [entry for entry in strategy.ledger.entries if entry.kind == "handshake"]
    assert [(entry.client, entry.round, entry.failed) for entry in asked] == [
        (grid.partitions[node], 0, False) for node in sorted(grid.partitions)
    ]
    first = [entry for entry in strategy.ledger.of_round(1) if entry.kind == "train"]
    held = downlink != "dense"
    assert all((entry.down_bytes < entry.dense_down_bytes / 5) == held for entry in first)


def test_a_client_without_the_mod_is_not_trained_by_the_question_and_counts():
    grid = Listening(plain_train())
    strategy = DarexStrategy(fedavg(clients=3), p=0.9, values="fp32")
    result = rounds(strategy, grid, 1)
    assert [reply.has_error() for reply in grid.replies] == [True] * 3 + [False] * 3
    assert strategy.counted == 3
    moved = to_arrays(result.arrays)
    assert all(np.allclose(moved[n], BASE[n] + 0.5, atol=1e-6) for n in BASE)


def test_without_a_handshake_nobody_is_asked_and_slots_go_by_node_id(caplog):
    grid = Listening(plain_train(DarexMod()))
    strategy = DarexStrategy(fedavg(clients=3), p=0.9, handshake=False)
    with listening(caplog):
        rounds(strategy, grid, 2)
    assert [entry.kind for entry in strategy.ledger.entries] == ["train"] * 6
    assert strategy.ledger.partition_of == {n: s for s, n in enumerate(sorted(grid.partitions))}
    assert "told no partition" not in caplog.text
    assert strategy.counted == 3


@pytest.mark.parametrize("told", [True, 1.0, "0", -1, 2**63 - 1])
def test_what_is_no_partition_is_not_taken_for_one(told):
    one, grid = roster(), Changing(n11=0)
    grid.partitions[12] = told
    one.update(grid, 1)
    assert one.partition_of == {11: 0, 12: told if type(told) is int and told > 0 else 1}


def test_a_question_of_an_earlier_server_is_answered_where_the_app_has_a_handler():
    app = plain_train(DarexMod())

    @app.query("handshake")
    def handshake(message: Message, context: Context) -> Message:
        raise RuntimeError("the mod answers")

    grid = Federation(app, 2)
    config = ConfigRecord()
    Greeting(run="0" * 16, first="1" * 16).attach(config)
    nodes = grid.get_node_ids()
    question = RecordDict({"config": config})
    replies = grid.send_and_receive([Message(question, n, MESSAGE_TYPE) for n in nodes], timeout=9)
    told = {r.metadata.src_node_id: r.content["handshake"]["partition-id"] for r in replies}
    assert told == grid.partitions


@pytest.mark.parametrize(
    "mod", [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(1.0, 1.0, 10.0, 1e-5)]
)
def test_a_privacy_mod_outside_ours_answers_the_question_with_an_error_and_no_more(mod):
    grid = Federation(plain_train(mod, DarexMod()), 3)
    one = roster()
    one.update(grid, 0.2)  # the error answers no message, so nobody waits for it
    assert one.partition_of == {n: s for s, n in enumerate(sorted(grid.partitions))}


@pytest.mark.parametrize("mod", [arrays_size_mod, message_size_mod])
def test_a_mod_outside_ours_that_only_counts_lets_the_question_pass(mod):
    grid = Federation(plain_train(mod, DarexMod()), 3)
    one = roster()
    one.update(grid, 9)
    assert one.partition_of == grid.partitions


# --- replies that are nobody's --------------------------------------------------------------------


def with_metadata(reply: Message, **changes: Any) -> Message:
    """Return a reply that claims something else of itself."""
    other = with_content(reply, reply.content)
    other.metadata.__dict__.update({f"_{name}": value for name, value in changes.items()})
    return other


class Forging(Federation):
    """Adds a changed copy before each reply of a client's training."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(numpy_app([DarexMod()]), 3)
        self.changes = changes

    def pull_messages(self, message_ids: Any) -> Any:
        for reply in super().pull_messages(message_ids):
            if reply.content.metric_records:
                changes = dict(self.changes)
                if changes.get("src_node_id") == "neighbour":
                    nodes = sorted(self.partitions)
                    after = nodes.index(reply.metadata.src_node_id) + 1
                    changes["src_node_id"] = nodes[after % len(nodes)]
                yield with_metadata(reply, **changes)
            yield reply


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reply_to_message_id": "f" * 64}, "nobody asked, or was answered before"),
        ({"src_node_id": "neighbour"}, "was asked"),
        ({"src_node_id": SERVER_NODE_ID}, "was asked"),  # the server itself says errors alone
        ({"run_id": 7}, "it is of run 7, not"),
        ({}, "nobody asked, or was answered before"),  # twice is once
    ],
)
def test_a_reply_that_is_not_the_one_that_was_asked_for_is_dropped_with_a_line(
    changes, said, caplog
):
    honest = DarexStrategy(fedavg(clients=3), p=0.9)
    expected = rounds(honest, Federation(numpy_app([DarexMod()]), 3), 2)
    strategy = DarexStrategy(fedavg(clients=3), p=0.9)
    with listening(caplog):
        found = rounds(strategy, Forging(**changes), 2)
    assert strategy.counted == 3
    lines = {id(one): one.getMessage() for one in caplog.records}  # heard twice is once, too
    dropped = [line for line in lines.values() if "is dropped: " in line]
    assert len(dropped) == 6 and all(said in line for line in dropped)
    assert all((to_arrays(found.arrays)[n] == to_arrays(expected.arrays)[n]).all() for n in BASE)
    counted = [(e.kind, e.client, e.up_bytes) for e in strategy.ledger.entries]
    assert counted == [(e.kind, e.client, e.up_bytes) for e in honest.ledger.entries]


class Slow(Federation):
    """Client 0 lacks its model whenever it is sent less; others work until it was asked again."""

    def __init__(self) -> None:
        super().__init__(numpy_app([DarexMod()]), 3)
        self.asked_again = False

    def _reply(self, message: Message) -> Message:
        note = message.content.get("config", {}).get(DELIVERY_KEY, "")
        if self.partitions[message.metadata.dst_node_id] == 0 and note:
            if '"start":""' not in note:
                missing = RecordDict({MISSING: ConfigRecord({"version": "0" * 16})})
                return Message(missing, reply_to=message)
            # Beyond the question and the first round.
            self.asked_again = self.asked_again or len(self.pushed) > 3 * 3
        return super()._reply(message)

    def pull_messages(self, message_ids: Any) -> Any:
        working = len(self.pushed) > 2 * 3 and not self.asked_again
        keep = [
            key
            for key, reply in self._done.items()
            if working and self.partitions[reply.metadata.src_node_id] != 0
        ]
        return super().pull_messages([key for key in message_ids if key not in keep])


def test_a_client_that_lacks_its_model_is_asked_again_while_others_still_work():
    grid = Slow()
    strategy = DarexStrategy(fedavg(clients=3), p=0.9)
    strategy.start(grid, to_record(BASE), num_rounds=2, timeout=60)
    assert grid.asked_again
    assert strategy.counted == 3
    kinds = [entry.kind for entry in strategy.ledger.of_round(2)]
    assert sorted(kinds) == ["lacking", "train", "train", "train"]


def test_a_second_try_has_time_of_its_own_however_late_the_first_answer_came():
    class Late(Federation):
        """The one client says what it lacks just before the time is over, and then takes long."""

        def __init__(self) -> None:
            super().__init__(numpy_app(), 1)
            self.until = 0.0

        def _hand_out(self, messages: list[Message]) -> None:
            first = not self.until
            self.until = time.monotonic() + (3.0 if first else 1.2)
            for message in messages:
                content = RecordDict({MISSING if first else "there": ConfigRecord()})
                self._done[message.metadata.message_id] = Message(content, reply_to=message)

        def pull_messages(self, message_ids: Any) -> Any:
            return super().pull_messages(message_ids if time.monotonic() > self.until else [])

    grid = Late()
    again = FallbackGrid(grid, lambda m: Message(m.content, m.metadata.dst_node_id, "train"))
    (node,) = grid.get_node_ids()
    (reply,) = again.send_and_receive([Message(RecordDict(), node, "train")], timeout=4.0)
    assert "there" in reply.content
