"""What crosses the network in secure aggregation, and who refuses what."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from secure_clients import (
    BASE,
    LAYOUT,
    MASK,
    SURVIVORS,
    Clients,
    integers,
    masked_replies,
    own_update,
    sealed,
    start,
    told,
    update,
)

from fl_darex.clients.secure import answer, hide
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.flower.records import SEALED_STYPE, packet_of, packet_record, to_record
from fl_darex.secagg import SecureAggregation, keys
from fl_darex.secagg.masks import add_shared, own_mask
from fl_darex.secagg.messages import (
    KEYS,
    MASKED,
    SECURE_KEY,
    SHARES,
    UNMASK,
    Stage,
    answer_bytes,
    join,
    rows_of,
)
from fl_darex.secagg.numbers import shape_of
from fl_darex.secagg.sealed_packet import SEALED_HEADER_BYTES, SealedHeader
from fl_darex.secagg.shares import combine

SESSION = "00112233445566778899aabbccddeeff"
HEADER = SealedHeader(
    width=3,
    session=bytes.fromhex(SESSION),
    round=2,
    slot=1,
    fingerprint=bytes(range(16)),
    base=bytes(8),
    survivors=2,
)
BODY = bytes(range(6))
GOLDEN = bytes.fromhex(
    "4441524d 01 03 0000"  # DARM, version 1, 3 bytes a number, zeros
    "00112233445566778899aabbccddeeff"  # session
    "0200000000000000 0100000000000000"  # round 2, slot 1
    "000102030405060708090a0b0c0d0e0f"  # layout fingerprint
    "0000000000000000"  # version of the model: not said
    "0200000000000000"  # 2 survivors
    "38106e90"  # CRC-32
    "000102030405"  # two masked numbers
)


def test_a_masked_packet_never_changes_on_the_wire() -> None:
    assert HEADER.seal(BODY) == GOLDEN
    assert bytes(HEADER.open(GOLDEN, 6)) == BODY


def reseal(data: bytes) -> bytes:
    end = SEALED_HEADER_BYTES - 4
    check = zlib.crc32(data[SEALED_HEADER_BYTES:], zlib.crc32(data[:end]))
    return data[:end] + check.to_bytes(4, "little") + data[SEALED_HEADER_BYTES:]


def changed(at: int, value: int = 0xAA) -> bytes:
    return reseal(GOLDEN[:at] + bytes([value]) + GOLDEN[at + 1 :])


@pytest.mark.parametrize(
    ("data", "match", "reason"),
    [
        (b"", "has 0 bytes, expected 82", Reason.SIZE),
        (GOLDEN[:-1], "has 81 bytes", Reason.SIZE),
        (GOLDEN + b"\0", "has 83 bytes", Reason.SIZE),
        (GOLDEN[:-1] + b"\0", "does not match its checksum", Reason.CHECKSUM),
        (changed(0), "begins with aa41524d", Reason.FORMAT),
        (changed(4, 2), "begins with", Reason.FORMAT),
        (changed(5, 4), "has width 4, expected 3", Reason.UNEXPECTED),
        (changed(6), "begins with", Reason.FORMAT),
        (changed(8), "has session", Reason.UNEXPECTED),
        (changed(24), "has round 170, expected 2", Reason.UNEXPECTED),
        (changed(32), "has slot 170, expected 1", Reason.UNEXPECTED),
        (changed(40), "has fingerprint", Reason.LAYOUT),
        (changed(56), "has base", Reason.UNEXPECTED),
        (changed(64), "has survivors 170, expected 2", Reason.UNEXPECTED),
    ],
)
def test_any_other_masked_packet_is_refused(data: bytes, match: str, reason: Reason) -> None:
    with pytest.raises(PacketError, match=match) as caught:
        HEADER.open(data, 6)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord(),
        ArrayRecord({"a": Array(np.zeros(3))}),
        ArrayRecord(dict.fromkeys("ab", next(iter(packet_record(GOLDEN, SEALED_STYPE).values())))),
    ],
)
def test_a_reply_in_the_clear_is_refused_where_a_masked_one_was_asked_for(
    record: ArrayRecord,
) -> None:
    with pytest.raises(PacketError, match="something else came"):
        HEADER.open(packet_of(record, SEALED_STYPE), 6)
    ((name, array),) = packet_record(GOLDEN, SEALED_STYPE).items()
    assert (name, array.stype, array.data) == ("darex.masked", "darex.masked.v1", GOLDEN)


# --- Stages --------------------------------------------------------------------------------------

STAGE = Stage(
    stage=MASKED,
    session=SESSION,
    slot=4,
    threshold=3,
    range=0.5,
    dense_range=1.0,
    levels=127,
    width=2,
    max_weight=10.0,
    weight="num-examples",
    metrics=("loss",),
    rows=join([(1, b"ab"), (2, b"cd")]),
)


def test_stages_never_change_on_the_wire() -> None:
    config: dict[str, Any] = {"lr": 0.1}
    STAGE.attach(config)
    assert config == {
        "lr": 0.1,
        "darex.secure": '{"stage":"masked","session":"00112233445566778899aabbccddeeff","slot":4,'
        '"threshold":3,"range":0.5,"dense_range":1.0,"levels":127,"width":2,"max_weight":10.0,'
        '"weight":"num-examples","norm":0.0,"metrics":["loss"],"version":1}',
        "darex.secure.rows": b"\1\0\0\0\0\0\0\0ab\2\0\0\0\0\0\0\0cd",
    }
    assert Stage.detach(config) == STAGE and config == {"lr": 0.1}
    assert Stage.detach(config) is None


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"masked"', '"undress"', "stage in .* is 'undress', not one of keys, shares"),
        ('"slot":4', '"slot":-1', "slot in .* is -1"),
        ('"threshold":3', '"threshold":1', "threshold in .* is 1"),
        ('"range":0.5', '"range":0', "does not say in which units"),
        ('"range":0.5', '"range":1' + "0" * 400, "range in .* is 1000"),
        ('"range":0.5', '"range":NaN', "range in .* is nan"),
        ('"width":2', '"width":9', "width in .* is 9"),
        ('"width":2', '"width":0', "does not say in which units"),
        ('"levels":127', '"levels":true', "levels in .* is True"),
        ('"metrics":["loss"]', '"metrics":"loss"', "metrics in .* is 'loss'"),
        ('"version":1', '"version":2', "wire version 2"),
        ('"weight":"num-examples",', "", "missing or unknown"),
    ],
)
def test_stages_that_are_not_understood_are_refused(old: str, new: str, match: str) -> None:
    config: dict[str, Any] = {}
    STAGE.attach(config)
    assert old in config[SECURE_KEY]
    config[SECURE_KEY] = config[SECURE_KEY].replace(old, new)
    with pytest.raises(PacketError, match=match):
        Stage.detach(config)


def test_rows_must_be_whole_rising_and_bytes() -> None:
    assert rows_of(join([(1, b"ab"), (9, b"cd")]), 2) == {1: b"ab", 9: b"cd"}
    for blob, match in (
        (b"123", "has 3 bytes of rows, each of 10"),
        (join([(2, b"ab"), (1, b"cd")]), "do not rise"),
        (join([(1, b"ab"), (1, b"cd")]), "do not rise"),
        (bytes(10 * (2**15 + 1)), "bytes of rows"),
    ):
        with pytest.raises(PacketError, match=match):
            rows_of(blob, 2)
    config: dict[str, Any] = {}
    STAGE.attach(config)
    with pytest.raises(PacketError, match="has rows of type str"):
        Stage.detach(config | {"darex.secure.rows": "text"})


def test_answers_of_another_size_are_refused() -> None:
    record = ConfigRecord({"keys": b"123", "shares": 5})
    assert answer_bytes(record, "keys", 3) == b"123"
    for key, match in (("keys", "3 bytes, expected 4"), ("shares", "of int"), ("no", "NoneType")):
        with pytest.raises(PacketError, match=match):
            answer_bytes(record, key, 4)


# --- A client refuses what an honest server has no use for ---------------------------------------


def stage(name: str, rows: bytes = b"", **more: Any) -> Stage:
    given = {"session": SESSION, "slot": 0, "threshold": 3} | more
    return Stage(stage=name, rows=rows, **given)


def with_keys(slots: tuple[int, ...] = (1, 2, 3)) -> tuple[RecordDict, bytes]:
    """A client that made its keys, and rows with those of others."""
    state = RecordDict()
    answer(stage(KEYS), state)
    public = [
        keys.public_key(keys.new_secret()) + keys.public_key(keys.new_secret()) for _ in slots
    ]
    return state, join(zip(slots, public, strict=True))


def test_a_stage_out_of_turn_or_of_another_session_is_refused() -> None:
    for name in (SHARES, UNMASK):
        with pytest.raises(PacketError, match="does not follow"):
            answer(stage(name), RecordDict())
    state, rows = with_keys()
    with pytest.raises(PacketError, match="does not follow"):
        answer(stage(SHARES, rows, session="f" * 32), state)
    answer(stage(SHARES, rows), state)
    with pytest.raises(PacketError, match="each is answered once"):
        answer(stage(SHARES, rows), state)


@pytest.mark.parametrize("threshold", [2, 5])
def test_a_threshold_with_which_two_stories_could_be_told_is_refused(threshold: int) -> None:
    state, rows = with_keys()
    with pytest.raises(PacketError, match=f"asks for {threshold} shares of 4"):
        answer(stage(SHARES, rows, threshold=threshold), state)


def test_the_same_key_twice_or_too_few_neighbours_are_refused() -> None:
    state, rows = with_keys((1, 2))
    twice = join((slot, rows[8:72]) for slot in (1, 2, 3))
    with pytest.raises(PacketError, match="same public key twice"):
        answer(stage(SHARES, twice), state)
    with pytest.raises(PacketError, match="names 1 neighbours"):
        answer(stage(SHARES, rows[:72], threshold=2), state)
    with pytest.raises(PacketError, match="or this client as its own"):
        answer(stage(SHARES, join([(0, rows[8:72]), (2, rows[80:])])), state)


def until(name: str) -> tuple[Clients, dict[str, Stage]]:
    """Three clients that were taken through a round up to a stage; the stages that 0 was sent."""
    clients = Clients({s: update(s) for s in range(3)}, dict.fromkeys(range(3), 1.0))
    asked = SecureAggregation(range=0.05, max_weight=1)
    opened, grid, messages = start(asked, clients, 3)
    replies = masked_replies(opened, grid, messages)
    if name == UNMASK:
        opened.unmasked(replies)
    return clients, {one.stage: one for slot, one in clients.seen if slot == 0}


def test_a_client_masks_one_update_in_a_session() -> None:
    clients, sent = until(MASKED)
    with pytest.raises(PacketError, match="each is answered once"):
        sealed(9, update(9), sent[MASKED], clients.states[0])


def test_a_client_unmasks_once_and_forgets_its_secrets() -> None:
    clients, sent = until(UNMASK)
    assert not clients.states[0]
    with pytest.raises(PacketError, match="does not follow"):
        answer(sent[UNMASK], clients.states[0])


@pytest.mark.parametrize("alive", [(0, 1), (1, 2), (0, 1, 2, 3), ()])
def test_too_few_survivors_or_strangers_are_not_unmasked(alive: tuple[int, ...]) -> None:
    clients, _ = until(MASKED)
    with pytest.raises(PacketError, match="clients are left; at least 3"):
        session = str(clients.states[0].config_records[SECURE_KEY]["session"])
        answer(stage(UNMASK, join((s, b"") for s in alive), session=session), clients.states[0])


def test_a_late_reply_of_a_client_that_was_given_up_stays_masked() -> None:
    """The server then knows the key of its shared masks, but not the seed of its own."""
    count = 4
    clients = Clients({s: update(s) for s in range(count)}, dict.fromkeys(range(count), 1.0))
    clients.silent.add((3, MASKED))
    asked = SecureAggregation(range=0.05, max_weight=1)
    opened, grid, messages = start(asked, clients, count)
    opened.unmasked(masked_replies(opened, grid, messages))
    given = [reply.content[SECURE_KEY]["shares"] for reply in clients.replies[-3:]]
    assert [len(shares) for shares in given] == [16 * count] * 3  # one share of each client
    sent = next(one for slot, one in clients.seen if (slot, one.stage) == (3, MASKED))
    state = dict(clients.states[3].config_records[SECURE_KEY])
    late = sealed(3, update(3), sent, clients.states[3])

    found = combine({at: shares[48:] for at, shares in enumerate(given)}, 3, lambda _: True)
    assert found is not None
    secret = found.secret
    assert secret == state["masking"]  # a client that stayed does not tell: see the threshold
    shape = shape_of(LAYOUT, asked.ring_for(count).width, SURVIVORS)
    left, session = shape.read(late[SEALED_HEADER_BYTES:]), bytes.fromhex(sent.session)
    for peer, public in rows_of(state["peers"], 64).items():
        masks = shape.zeros()
        add_shared(masks, secret, public[32:], session, 3, peer)
        left.subtract(masks)
    bare = integers(update(3), 1.0, asked, count, 3)
    assert np.count_nonzero(left.narrow == bare.narrow) == 0
    left.subtract(own_mask(shape, state["seed"], session, 3))
    assert left.write() == bare.write()


def test_fewer_neighbours_than_agreed_on_are_not_masked_with() -> None:
    clients, sent = until(MASKED)
    state, rows = with_keys((1, 2))
    answer(stage(SHARES, rows), state)
    bare = Stage(**{**vars(sent[MASKED]), "session": SESSION, "rows": b""})
    with pytest.raises(PacketError, match="names 0 neighbours, fewer than agreed on"):
        sealed(0, update(0), bare, state)
    assert clients.states[0]


@pytest.mark.parametrize("metrics", [{}, {"num-examples": [1, 2]}])
def test_an_update_without_a_weight_is_refused(metrics: dict[str, Any]) -> None:
    from flwr.app import Message, MetricRecord

    content = RecordDict({"metrics": MetricRecord(metrics)})
    start(SecureAggregation(range=1, max_weight=1), lambda *_: None, 3)  # adopts a run
    message = Message(content, 1, "train")
    with pytest.raises(DeltaError, match="the reply's metric 'num-examples' is"):
        hide(message, own_update(BASE), BASE, told(0), STAGE, RecordDict())


# --- The server refuses what a hostile client sends ----------------------------------------------


class Hostile(Clients):
    """Client 0 of five changes its answer to one stage."""

    def __init__(self, stage: str, change: Any) -> None:
        super().__init__({s: update(s) for s in range(5)}, dict.fromkeys(range(5), 1.0))
        self._stage, self._change = stage, change

    def __call__(self, message: Any, context: Any) -> Any:
        reply = super().__call__(message, context)
        slot, asked = self.seen[-1]
        if slot == 0 and asked.stage == self._stage:
            self._change(reply)
        return reply


def _set(key: str, value: Any) -> Any:
    def change(reply: Any) -> None:
        reply.content[SECURE_KEY][key] = value

    return change


def _flip(reply: Any) -> None:
    shares = reply.content[SECURE_KEY]["shares"]
    reply.content[SECURE_KEY]["shares"] = bytes([shares[0] ^ 1]) + shares[1:]


def _masked(change: Any) -> Any:
    def on(reply: Any) -> None:
        (array,) = reply.content["arrays"].values()
        reply.content["arrays"] = packet_record(change(array.data), SEALED_STYPE)

    return on


@pytest.mark.parametrize(
    ("name", "change", "left"),
    [
        (KEYS, _set("keys", b"short"), 4),
        (KEYS, _set("keys", bytes(64)), 4),
        (KEYS, lambda reply: reply.content.clear(), 4),
        (SHARES, _set("shares", b""), 4),
        (SHARES, _set("commitment", 7), 4),
        (MASKED, _masked(lambda data: data[:-1]), 4),
        (MASKED, lambda reply: reply.content.clear(), 4),
        (MASKED, lambda reply: reply.content.update({"arrays": to_record(BASE)}), 4),
        (UNMASK, _set("shares", b"123"), 5),
        (UNMASK, _flip, 5),
    ],
)
def test_a_hostile_answer_costs_that_client_at_most(name: str, change: Any, left: int) -> None:
    asked = SecureAggregation(range=0.05, max_weight=1, threshold=3)
    opened, grid, messages = start(asked, Hostile(name, change), 5)
    mean, counted = opened.close(masked_replies(opened, grid, messages))
    assert len(counted) == left and mean.weight == pytest.approx(left)


def test_two_clients_with_the_same_keys_are_both_left_out() -> None:
    class Copying(Clients):
        def __call__(self, message: Any, context: Any) -> Any:
            reply = super().__call__(message, context)
            if self.seen[-1][1].stage == KEYS:
                if self.seen[-1][0] == 1:
                    reply.content[SECURE_KEY] = self.replies[0].content[SECURE_KEY]
            return reply

    clients = Copying({s: update(s) for s in range(6)}, dict.fromkeys(range(6), 1.0))
    asked = SecureAggregation(range=0.05, max_weight=1, threshold=0.5)
    opened, grid, messages = start(asked, clients, 6)
    _, counted = opened.close(masked_replies(opened, grid, messages))
    assert [grid.partitions[one.metadata.src_node_id] for one in counted] == [2, 3, 4, 5]


def test_a_masked_packet_has_the_size_that_the_docs_state() -> None:
    clients = Clients({s: update(s) for s in range(3)}, dict.fromkeys(range(3), 1.0))
    asked = SecureAggregation(range=0.05, max_weight=1)
    opened, grid, messages = start(asked, clients, 3)
    for reply in masked_replies(opened, grid, messages):
        (array,) = reply.content["arrays"].values()
        # 3 bytes for each survivor and dense number, 8 for each counter, 16 for the tail.
        assert len(array.data) == 76 + 3 * (SURVIVORS + 3) + 8 * 2 + 16
    assert MASK.slot == -1
