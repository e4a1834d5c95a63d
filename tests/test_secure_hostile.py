"""Hostile clients under secure aggregation: whole rounds of DarexStrategy with DarexMod."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import federations
import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, listening, rounds
from flwr.app import Context, Message, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

from fl_darex.clients import DarexMod
from fl_darex.flower.records import SEALED_STYPE, packet_of, packet_record, to_arrays
from fl_darex.secagg import keys
from fl_darex.secagg.messages import KEYS, MASKED, SECURE_KEY, SHARES, UNMASK, Stage
from fl_darex.strategies import DarexStrategy, SecureAggregation

RANGE = 0.1
CHECK_AT = 72
Change = Callable[[Message, Context], None]


class Liar:
    """A ClientApp of which some partitions change their answers to some stages.

    Args:
        changes: What they do to a reply, by stage.
        liars: Their partitions.
        rounds: In which rounds; empty: in all.
    """

    def __init__(
        self,
        changes: dict[str, Change],
        liars: Collection[int] = (1,),
        rounds: Collection[int] = (),
    ) -> None:
        self.app = numpy_app([DarexMod()])
        self.changes, self.liars, self.rounds = changes, set(liars), set(rounds)
        self.asked: list[tuple[int, str, Any]] = []  # round, stage, partition

    def __call__(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        configs = list(message.content.config_records.values())
        stages = [stage for c in configs if (stage := Stage.detach(dict(c)))]
        round_ = configs[0].get("server-round") if configs else None
        reply = self.app(message, context)
        for stage in stages:
            self.asked.append((int(round_), stage.stage, partition))
            lies = partition in self.liars and (not self.rounds or round_ in self.rounds)
            if lies and stage.stage in self.changes:
                self.changes[stage.stage](reply, context)
        return reply

    def took_part(self, round_: int) -> list[int]:
        return sorted(p for r, stage, p in self.asked if (r, stage) == (round_, KEYS))


def secure(inner: Any = None, clients: int = 5, p: float = 0.5, **asked: Any) -> DarexStrategy:
    settings = SecureAggregation(**{"range": RANGE, "max_weight": 10} | asked)
    fedavg = inner or federations.fedavg(clients=clients)
    return DarexStrategy(fedavg, p=p, mask="round", secure=settings)


def go(strategy: DarexStrategy, app: Any, count: int = 1, clients: int = 5, **more: Any) -> Any:
    """Run rounds and return how many replies each one counted, and Flower's result."""
    counted: list[int] = []
    inner = strategy.aggregate_train

    def aggregate(server_round: int, replies: Any) -> Any:
        found = inner(server_round, replies)
        counted.append(strategy.counted)
        return found

    strategy.aggregate_train = aggregate  # type: ignore[method-assign]
    return counted, rounds(strategy, Federation(app, clients), count, **more)


# --- What a client writes into its masked packet ---


def rewritten(change: Callable[[bytearray], None]) -> Change:
    """Change a masked packet as its sender can, with a checksum that is right."""

    def on(reply: Message, context: Context) -> None:
        data = bytearray(packet_of(reply.content["arrays"], SEALED_STYPE) or b"")
        change(data)
        head = bytes(data[:CHECK_AT])
        struct.pack_into("<I", data, CHECK_AT, zlib.crc32(data[CHECK_AT + 4 :], zlib.crc32(head)))
        reply.content["arrays"] = packet_record(bytes(data), SEALED_STYPE)

    return on


def add(where: int, number: int, width: int = 8) -> Change:
    """Add to one of the integers of a masked packet, modulo the ring."""

    def change(data: bytearray) -> None:
        at = where if where >= 0 else len(data) + where
        old = int.from_bytes(data[at : at + width], "little")
        data[at : at + width] = ((old + number) % 256**width).to_bytes(width, "little")

    return rewritten(change)


WEIGHT, CLIPPED, FIRST = -16, -8, CHECK_AT + 4
STEPS = [round(w / 10 * 2**24) for w in range(1, 6)]


@pytest.mark.parametrize("less", [round(1.5 * 2**24) - 100, sum(STEPS) - 1, sum(STEPS) - 10**6])
def test_a_client_that_lowers_its_masked_weight_does_not_multiply_the_mean(
    less: int, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(caplog):
        counted, result = go(secure(), Liar({MASKED: add(WEIGHT, -less)}))
    assert counted == [0] and not to_arrays(result.arrays)
    assert "the sum of the masked updates makes no sense" in caplog.text


@pytest.mark.parametrize("change", [1, -1, 2**24, -(5 * 2**24 - 1)])
def test_where_all_weights_are_equal_their_sum_is_known(change: int) -> None:
    private = DifferentialPrivacyServerSideFixedClipping(
        federations.fedavg(clients=5),
        noise_multiplier=1e-6,
        clipping_norm=1.0,
        num_sampled_clients=5,
    )
    counted, _ = go(secure(private), Liar({MASKED: add(WEIGHT, change)}))
    assert counted == [0]
    assert go(secure(private), Liar({}))[0] == [5]


def test_a_mean_is_no_longer_than_the_norm_that_was_asked_for() -> None:
    """Every number may be at the range, which would be 20 times as long as the norm."""

    def fill(data: bytearray) -> None:
        for at in range(FIRST, len(data) - 16, 3):
            old = int.from_bytes(data[at : at + 3], "little")
            data[at : at + 3] = ((old + 30000) % 256**3).to_bytes(3, "little")

    strategy = DarexStrategy(
        federations.fedavg(clients=5),
        p=0.0,
        mask="round",
        clip=0.05,
        secure=SecureAggregation(range=RANGE, max_weight=10),
    )
    counted, _ = go(strategy, Liar({MASKED: rewritten(fill)}))
    assert counted == [0]


def test_a_mean_that_rounding_makes_longer_is_cut_to_the_norm() -> None:
    strategy = DarexStrategy(
        federations.fedavg(clients=5),
        p=0.0,
        mask="round",
        clip=0.05,
        secure=SecureAggregation(range=RANGE, max_weight=10, bits=3),
    )
    counted, result = go(strategy, Liar({}))
    assert counted == [5]
    moved = {name: array - BASE[name] for name, array in to_arrays(result.arrays).items()}
    assert np.sqrt(sum(float((m.astype(float) ** 2).sum()) for m in moved.values())) < 0.0501


def test_numbers_of_a_tiny_total_weight_stay_in_the_range() -> None:
    """Rounding allows one step for each client, which is a lot where nearly nothing weighs it."""

    def change(reply: Message, context: Context) -> None:
        add(WEIGHT, 1 - sum(STEPS))(reply, context)
        add(FIRST, 5, 3)(reply, context)

    liar = Liar({MASKED: change})
    liar.app = numpy_app([DarexMod(), unmoved])
    counted, result = go(secure(p=0.0), liar)
    assert counted == [5]
    moved = {name: array - BASE[name] for name, array in to_arrays(result.arrays).items()}
    assert max(float(np.abs(m).max()) for m in moved.values()) <= RANGE * 1.001


def unmoved(message: Message, context: Context, call_next: Any) -> Message:
    """A mod: the app's training changes nothing."""
    sent = {name: dict(record) for name, record in message.content.array_records.items()}
    reply = call_next(message, context)
    for name in reply.content.array_records:
        reply.content.array_records[name].update(sent[name])
    return reply


# --- Shares, letters and keys ---


def garbage(field: str, first: int = 0, end: int | None = None) -> Change:
    """Put random bytes into a part of an answer."""

    def change(reply: Message, context: Context) -> None:
        old = reply.content[SECURE_KEY][field]
        stop = len(old) if end is None else end
        new = old[:first] + os.urandom(stop - first) + old[stop:]
        reply.content[SECURE_KEY][field] = new

    return change


def test_garbage_letters_cost_one_round_and_their_sender_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening(caplog):
        liar = Liar({SHARES: garbage("shares")})
        counted, _ = go(secure(), liar, 3)
    assert counted == [0, 4, 4]
    assert liar.took_part(2) == liar.took_part(3) == [0, 2, 3, 4]
    text = "client 1 is left out of secure aggregation from now on: "
    assert text + "4 shares that it dealt or handed on cannot be used" in caplog.text
    assert sum("is left out of secure aggregation" in text for text in set(caplog.messages)) == 1
    assert "the letter of client 1: shares of secure aggregation were changed" in caplog.text


def test_one_bad_letter_costs_that_letter() -> None:
    one = garbage("shares", 0, keys.LETTER_BYTES)
    liar = Liar({SHARES: one})
    counted, _ = go(secure(), liar, 2)
    assert counted == [5, 5]  # nobody can tell who of the two lies, and nothing is lost


def test_a_wrong_commitment_costs_nothing_and_its_sender_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening(caplog):
        liar = Liar({SHARES: garbage("commitment")})
        counted, _ = go(secure(), liar, 2)
    assert counted == [5, 4] and liar.took_part(2) == [0, 2, 3, 4]
    assert "client 1 is left out of secure aggregation from now on: it committed" in caplog.text


def test_garbage_shares_at_the_end_are_corrected_and_their_sender_is_left_out() -> None:
    clients = 10
    liar = Liar({UNMASK: garbage("shares")}, liars=[3, 8])
    honest, hostile = (
        go(secure(clients=clients), app, 1, clients)
        for app in (Liar({}), Liar(liar.changes, [3, 8]))
    )
    assert honest[0] == hostile[0] == [10]
    one, other = (to_arrays(result.arrays) for _, result in (honest, hostile))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    counted, _ = go(secure(clients=clients), liar, 2, clients)
    assert counted == [10, 8] and not {3, 8} & set(liar.took_part(2))


def test_two_letters_of_ten_that_hold_wrong_shares_cost_nothing() -> None:
    """A dealer that deals two wrong shares in letters that can be read."""
    counted, _ = go(secure(clients=10), Liar({SHARES: misdealt(2)}), 2, 10)
    assert counted == [10, 10]


def misdealt(wrong: int) -> Change:
    """Seal random shares for so many neighbours, as the client itself could."""

    def change(reply: Message, context: Context) -> None:
        known = context.state.config_records[SECURE_KEY]
        session, record = bytes.fromhex(str(known["session"])), reply.content[SECURE_KEY]
        peers = known["peers"]
        slot = int(context.node_config["partition-id"])
        letters = record["shares"]
        for at in range(wrong):
            row = peers[72 * at : 72 * (at + 1)]
            peer, public = int.from_bytes(row[:8], "little"), row[8:40]
            new = keys.seal(known["channel"], public, session, slot, peer, os.urandom(32))
            size = keys.LETTER_BYTES
            letters = letters[: size * at] + new + letters[size * (at + 1) :]
        record["shares"] = letters

    return change


def test_a_client_that_deals_wrong_shares_to_all_is_left_out() -> None:
    liar = Liar({SHARES: misdealt(4)})
    counted, _ = go(secure(), liar, 2)
    assert counted == [0, 4] and liar.took_part(2) == [0, 2, 3, 4]


# --- A sum that makes no sense ---


def random_packet(data: bytearray) -> None:
    data[FIRST:] = os.urandom(len(data) - FIRST)


@pytest.mark.parametrize(("clients", "liar"), [(5, 1), (5, 4), (8, 0)])
def test_a_client_that_sends_random_packets_is_found_by_halves(
    clients: int, liar: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = Liar({MASKED: rewritten(random_packet)}, [liar])
    with listening(caplog):
        counted, _ = go(secure(clients=clients), app, 8, clients)
    assert counted[-1] == clients - 1 and liar not in app.took_part(8)
    assert sum(1 for one in counted if not one) <= 4
    assert (
        f"client {liar} is left out of secure aggregation from now on: sums with it" in caplog.text
    )


def test_a_sum_that_made_no_sense_once_leaves_nobody_out_for_good() -> None:
    app = Liar({MASKED: rewritten(random_packet)}, [4], rounds=[1])
    counted, _ = go(secure(), app, 8)
    assert counted[0] == 0 and all(counted[1:]) and counted[-1] == 5


def test_of_three_clients_nobody_can_be_left_out() -> None:
    app = Liar({MASKED: rewritten(random_packet)}, [2], rounds=[1, 2])
    counted, _ = go(secure(clients=3), app, 3, 3)
    assert counted == [0, 0, 3]


def test_who_is_left_out_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    first = secure()
    go(first, Liar({SHARES: garbage("shares")}))
    again, app = secure(), Liar({SHARES: garbage("shares")})
    again.restore(first.state())
    assert go(again, app)[0] == [4] and app.took_part(1) == [0, 2, 3, 4]


# --- More attacks ---


def test_a_key_that_is_written_in_another_way_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """X25519 ignores the top bit: the key works, but does not show itself when it is rebuilt."""

    def top(reply: Message, context: Context) -> None:
        public = bytearray(reply.content[SECURE_KEY]["keys"])
        public[63] |= 0x80
        reply.content[SECURE_KEY]["keys"] = bytes(public)

    with listening(caplog):
        counted, _ = go(secure(), Liar({KEYS: top}))
    assert counted == [4] and "client 1 does not count this round: a public key" in caplog.text


@pytest.mark.parametrize("unread", [b"\0" * 8 * 40, b"123", 7, b"\xff" * 8])
def test_complaints_about_letters_that_were_never_sent_cost_that_answer(unread: Any) -> None:
    def complain(reply: Message, context: Context) -> None:
        reply.content[SECURE_KEY]["unread"] = unread

    assert go(secure(), Liar({UNMASK: complain}))[0] == [5]


def test_a_client_that_complains_of_all_is_left_out_and_not_those_it_complains_of() -> None:
    def complain(reply: Message, context: Context) -> None:
        rows = b"".join(slot.to_bytes(8, "little") for slot in (0, 2, 3, 4))
        reply.content[SECURE_KEY]["unread"] = rows

    app = Liar({UNMASK: complain})
    assert go(secure(), app, 2)[0] == [5, 4] and app.took_part(2) == [0, 2, 3, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, 2.0], [1.0] * 10**5])
def test_a_metric_that_is_no_number_costs_that_client(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def metric(reply: Message, context: Context) -> None:
        reply.content["metrics"] = MetricRecord({"loss": value})

    with listening(caplog):
        counted, result = go(secure(metrics=("loss",)), Liar({MASKED: metric}))
    assert counted == [4]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(np.mean([0, 2, 3, 4]))
    assert max(map(len, caplog.messages)) < 2000


def test_a_metric_that_one_client_leaves_out_costs_that_client() -> None:
    def metric(reply: Message, context: Context) -> None:
        del reply.content["metrics"]

    counted, result = go(secure(metrics=("loss",)), Liar({MASKED: metric}))
    assert counted == [4]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(np.mean([0, 2, 3, 4]))


def test_a_packet_of_another_client_is_refused() -> None:
    """One that a colluder passes on, with its slot in the header."""
    kept: list[bytes] = []

    def other(reply: Message, context: Context) -> None:
        kept.append(packet_of(reply.content["arrays"], SEALED_STYPE) or b"")
        reply.content["arrays"] = packet_record(kept[0], SEALED_STYPE)

    counted, _ = go(secure(), Liar({MASKED: other}, [1, 2]))
    assert counted == [4]


def test_claims_of_clipping_change_nothing_but_the_warning() -> None:
    counted, result = go(secure(), Liar({MASKED: add(CLIPPED, 3000)}))
    honest = go(secure(), Liar({}))[1]
    assert counted == [5]
    one, other = to_arrays(result.arrays), to_arrays(honest.arrays)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_counter_that_one_client_blows_up_is_refused() -> None:
    base = {**BASE, "steps": np.array([3, 7], dtype=np.int64)}
    counts = partial(add, -32)
    for number, left in ((2**61, 0), (2**24 * 2**23 * 3, 0), (2**24, 5)):
        strategy = secure()
        app = Liar({MASKED: counts(number)})
        result = rounds(strategy, Federation(app, 5), 1, base)
        assert strategy.counted == left, number
        if left:
            assert int(to_arrays(result.arrays)["steps"][0]) == 4
