"""What a server allocates follows from what it asked for, not from what a stranger says."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import federations
import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, listening, rounds
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fl_darex.clients import DarexMod
from fl_darex.compression import Terms, Uplink
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta, Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.model_note import DIGESTS_KEY, HELD_KEY
from fl_darex.flower.roster import HANDSHAKE, PARTITION_KEY
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, SeededMask, StructuredMask
from fl_darex.positions.rice import ListedPositions
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.header import HEADER_BYTES, read_header
from fl_darex.wire.packet import open_packet
from fl_darex.wire.reader import read_packet

SIDE = 1024
MODEL = {"w": np.zeros((SIDE, SIDE), np.float32)}
LAYOUT = Layout.of(MODEL)
MODEL_BYTES = 4 * SIDE * SIDE


def peak_of(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that a call takes at most, and what it returns."""
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def terms(client: int, method: str = "dare", p: float = 0.5) -> Terms:
    return Terms(Uplink.of(method, p, values="int4"), 1, client)


def packet(told: Terms) -> bytes:
    tuned = {"w": np.random.default_rng(told.slot).normal(size=(SIDE, SIDE)).astype(np.float32)}
    made, _ = told.uplink.how.compress(Delta(tuned, MODEL), told)
    assert made is not None
    return made


# --- Survivors -----------------------------------------------------------------------------------


def test_a_packet_that_claims_no_survivors_takes_no_more_memory_than_an_honest_one() -> None:
    """The first of 24 clients that are drawn together: its count must not say how many."""
    opened = [read_packet(packet(terms(client)), LAYOUT) for client in range(24)]
    header = replace(opened[0].header, survivors=0)
    liar = read_packet(header.seal(b""), LAYOUT)
    how = terms(0).uplink.how

    def mean(packets: list[Any]) -> Any:
        from fl_darex.compression import SparseUpdate

        parts = [Part(SparseUpdate.of_packet(one), 1.0) for one in packets]
        return weighted_mean(MODEL, LAYOUT, parts)

    honest, _ = peak_of(lambda: mean(opened))
    hostile, (result, odd) = peak_of(lambda: mean([liar, *opened[1:]]))
    assert result is None and len(odd) == 1
    assert hostile < honest + MODEL_BYTES  # was 24 masks of 4 MB each at once
    with pytest.raises(PacketError, match="has 0 survivors, the mask 518877 to 529700"):
        how.open(header.seal(b""), LAYOUT, terms(0))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("count", ["random", "exact"])
def test_a_mask_keeps_as_many_entries_as_it_is_known_to(p: float, count: str) -> None:
    layout = Layout.of({"a": np.zeros((300, 70), np.float32), "b": np.zeros(5, np.float32)})
    uplink = Uplink.of("dare", p, count=count)
    for slot in range(40):
        mask = uplink.drawn(1, slot)
        fewest, most = mask.bounds(layout)
        assert fewest <= sum(found.size for found in mask.in_layout(layout).values()) <= most
    numel = 300 * 70 + 5
    # The window is 12 standard deviations wide to each side, and some 40 more.
    spread = np.sqrt(numel * p * (1 - p))
    assert most - fewest <= 2 * (12 * spread + 60)


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_honest_lists_are_as_long_as_was_asked_for_and_longer_ones_are_refused(
    scope: str, p: float
) -> None:
    base = {"a": np.zeros((300, 70), np.float32), "b": np.zeros(5, np.float32)}
    layout, rng = Layout.of(base), np.random.default_rng(0)
    tuned = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in base.items()}
    told = Terms(Uplink.of("magnitude", p, options={"scope": scope}), 1, 0)
    how = told.uplink.how
    honest, _ = how.compress(Delta(tuned, base), told)
    assert honest is not None and how.open(honest, layout, told).count
    all_of_it, _ = how.compress(Delta(tuned, base), replace(told, uplink=Uplink.of("magnitude", 0)))
    assert all_of_it is not None
    with pytest.raises(PacketError, match=r"has 21005 survivors, the mask 0 to") as caught:
        how.open(all_of_it, layout, told)
    assert caught.value.reason is Reason.POSITIONS


def test_masks_of_which_nothing_is_known_may_keep_all() -> None:
    for mask in (ListedMask({}), StructuredMask(SeededMask(1, 1, 1, ONE // 4), ONE // 2)):
        assert mask.bounds(LAYOUT) == (0, SIDE * SIDE)


def test_a_list_of_zeros_is_refused_before_it_is_unpacked() -> None:
    """A bit is a byte once it is unpacked; nobody needs more than there are gaps and entries."""
    k = 19  # gaps in units of half a million
    section = bytes([1, k]) + bytes(120_000) + bytes(3)

    def refused() -> None:
        with pytest.raises(PacketError, match="too long"):
            ListedPositions(LAYOUT, memoryview(section), 1)

    assert peak_of(refused)[0] < 100_000  # was 960 KB


def test_an_opened_packet_holds_its_bytes_and_no_positions() -> None:
    told = terms(0, "magnitude")
    data = packet(told)
    size = peak_of(lambda: None)[0]
    tracemalloc.start()
    kept = [told.uplink.how.open(data, LAYOUT, told) for _ in range(8)]
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(kept) == 8 and size < MODEL_BYTES // 4  # each kept 4 MB of positions


def test_columns_and_slots_of_a_packet_are_compared_before_anything_is_drawn() -> None:
    mask = StructuredMask(SeededMask(1, 1, 1, 1 << 20), 1 << 30)
    head = read_header(packet(terms(0)))
    fields = replace(
        head, **vars(mask.fields), q=2.0**-12, survivors=0, position_bytes=8, q_count=1
    )
    body = ONE.to_bytes(8, "little")

    def refused() -> None:
        with pytest.raises(PacketError, match="share of columns is 4294967296, expected 10737"):
            open_packet(fields.seal(body), LAYOUT, mask, q=2.0**-12, values="int4")

    assert len(fields.seal(body)) == HEADER_BYTES + 8
    assert peak_of(refused)[0] < 100_000
    union = replace(head, mask_kind="union", slot=-1, position_bytes=8 << 17, survivors=0)

    def strange() -> None:
        data = union.seal(np.arange(1 << 17, dtype="<i8").tobytes())
        with pytest.raises(PacketError, match="mask kind is 'union', expected 'seeded'"):
            told = terms(0)
            told.uplink.how.open(data, LAYOUT, told)

    assert peak_of(strange)[0] < 4 << 20  # the packet itself, and no 131,072 masks


# --- Digests -------------------------------------------------------------------------------------


class Greets:
    """An app that lists digests of its own in the answer to the handshake."""

    def __init__(self, digests: bytes) -> None:
        self.app: ClientApp = numpy_app([DarexMod()])
        self.digests = digests

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if HANDSHAKE in message.metadata.message_type:
            told = dict(reply.content[HANDSHAKE])
            assert PARTITION_KEY in told
            told |= {HELD_KEY: "", DIGESTS_KEY: self.digests}
            reply.content[HANDSHAKE] = ConfigRecord(told)
        return reply


def test_digests_that_no_tensor_of_the_model_has_are_not_kept() -> None:
    strategy = DarexStrategy(federations.fedavg(), p=0.9)
    digests = np.random.default_rng(0).bytes(8 * 100_000)
    seen: list[Any] = []
    inner = strategy.aggregate_train

    def aggregate(server_round: int, replies: Any) -> Any:
        seen.append(strategy.state()["broadcast"]["clients"]["base"])
        return inner(server_round, replies)

    strategy.aggregate_train = aggregate  # type: ignore[method-assign]
    rounds(strategy, Federation(Greets(digests)), 1)
    assert strategy.counted == 4
    assert len(seen[0]) == 4 and not any(seen[0].values())


# --- What stands in the log ----------------------------------------------------------------------


def test_an_error_repeats_no_more_of_a_stranger_than_a_line() -> None:
    error = PacketError("it says " + "x" * 10**6 + "\nround 2: all is well", Reason.REPLY)
    assert len(str(error)) <= 600 and str(error).endswith("... (1,000,029 characters)")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    forged = PacketError("no\nWARNING round 2: all is well\x1b[2J")
    assert str(forged) == "no\\nWARNING round 2: all is well\\x1b[2J"
    assert str(PacketError("ä 名 ok")) == "ä 名 ok"


def test_a_client_that_fails_with_a_novel_costs_a_line(caplog: pytest.LogCaptureFixture) -> None:
    honest = numpy_app([DarexMod()])

    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2 and message.metadata.message_type == "train":
            raise RuntimeError("once upon a time\n" * 100_000)
        return honest(message, context)

    strategy = DarexStrategy(federations.fedavg(), p=0.9)
    with listening(caplog):
        rounds(strategy, Federation(app), 1, BASE)
    assert strategy.counted == 3
    lines = [text for text in set(caplog.messages) if "client 2 does not count" in text]
    assert len(lines) == 1 and len(lines[0]) < 700 and "\n" not in lines[0]


# --- One client is the mean ----------------------------------------------------------------------


def weighing(examples: float) -> Any:
    honest = numpy_app([DarexMod()])

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        metrics = reply.content.metric_records
        if context.node_config["partition-id"] == 2 and "metrics" in metrics:
            metrics["metrics"]["num-examples"] = examples
        return reply

    return app


@pytest.mark.parametrize(("examples", "said"), [(3, False), (5_000, False), (2.0**53, True)])
def test_one_client_that_is_the_mean_is_named(
    examples: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = DarexStrategy(federations.fedavg(), p=0.9)
    with listening(caplog):
        rounds(strategy, Federation(weighing(examples)), 1)
    assert strategy.counted == 4
    text = "round 1: client 2 weighs 9.0072e+15 of 9.0072e+15, so the mean of 4 clients is its own"
    assert (text in caplog.text) == said
    assert ("max_weight" in caplog.text) == said
    bounded = DarexStrategy(federations.fedavg(), p=0.9, max_weight=1000)
    rounds(bounded, Federation(weighing(examples)), 1)
    assert bounded.counted == (4 if examples < 1000 else 3)
