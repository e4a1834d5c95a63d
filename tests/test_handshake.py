"""Which node has which partition, as nodes come, go and come back."""

from __future__ import annotations

import pytest
from apps import BASE, numpy_app
from federations import Federation, listening
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import example, given
from hypothesis import strategies as st

from fl_darex.clients import DarexMod
from fl_darex.flower.private import SERVER_NODE_ID, number
from fl_darex.flower.records import to_record
from fl_darex.flower.roster import HANDSHAKE, Roster, answer
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
        if message.metadata.message_type.startswith("query"):
            self.asked.append(message.metadata.dst_node_id)
        return super()._reply(message)


def teller() -> ClientApp:
    app = ClientApp()

    @app.query(HANDSHAKE)
    def handshake(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        if partition is None:
            raise RuntimeError("no partition")
        return answer(message, int(partition))

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
            train = reply.metadata.message_type == "train"
            if not train or self.partitions[reply.metadata.src_node_id] != 1:
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
