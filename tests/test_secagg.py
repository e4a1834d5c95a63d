"""Secure aggregation: rings, integers, secrets, and rounds with drop-outs."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_clients import (
    BASE,
    LAYOUT,
    MASK,
    SURVIVORS,
    TARGET,
    Clients,
    announced,
    integers,
    masked_replies,
    own_update,
    packet_for,
    start,
    told,
    update,
)

from fl_darex.errors import DeltaError, PacketError
from fl_darex.secagg import SecureAggregation, keys
from fl_darex.secagg.masks import is_connected, seat, staying
from fl_darex.secagg.messages import KEYS, MASKED, SHARES, UNMASK
from fl_darex.secagg.numbers import WEIGHT_STEPS, to_mean, to_vector, weight_steps
from fl_darex.secagg.ring import Ring, Shape, Vector, bits_needed, ring_for
from fl_darex.secagg.shares import combine, split
from fl_darex.wire.reader import read_packet

ASKED = SecureAggregation(range=0.05, max_weight=100)


def run(asked: SecureAggregation, clients: Clients, count: int) -> tuple[Vector, list[int], Any]:
    """Run a round and return the unmasked sum, the slots in it, and the round."""
    opened, grid, messages = start(asked, clients, count)
    replies = masked_replies(opened, grid, messages)
    total, counted = opened.unmasked(replies)
    return total, [grid.partitions[one.metadata.src_node_id] for one in counted], opened


def clients_of(count: int, silent: Iterable[tuple[int, str]] = ()) -> Clients:
    return Clients(
        {slot: update(slot) for slot in range(count)},
        {slot: 10.0 * (slot + 1) for slot in range(count)},
        list(silent),
    )


def plain_sum(asked: SecureAggregation, clients: Clients, count: int, slots: list[int]) -> Vector:
    vectors = [
        integers(clients.tuned[slot], clients.weights[slot], asked, count, slot) for slot in slots
    ]
    total = vectors[0].shape.zeros()
    for vector in vectors:
        total.add(vector)
    return total


# --- The law -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(3, 7),
    bits=st.integers(2, 32),
    neighbours=st.sampled_from([None, 4]),
    data=st.data(),
)
def test_the_unmasked_sum_is_the_plain_sum_of_the_survivors_integers(
    count: int, bits: int, neighbours: int | None, data: st.DataObject
) -> None:
    asked = SecureAggregation(
        range=0.02, max_weight=55, bits=bits, neighbours=neighbours, threshold=0.5
    )
    stages = st.sampled_from([KEYS, SHARES, MASKED, UNMASK])
    lost = data.draw(st.lists(st.integers(0, count - 1), max_size=count, unique=True))
    clients = clients_of(count, [(slot, data.draw(stages)) for slot in lost])
    try:
        total, counted, _ = run(asked, clients, count)
    except PacketError as error:
        # With half of the clients gone or more, or one cut off from its neighbours.
        assert lost and ("needs" in str(error) or "needed" in str(error) or "cut" in str(error))
        return
    assert set(range(count)) - set(lost) <= set(counted)
    wanted = plain_sum(asked, clients, count, counted)
    ring = asked.ring_for(count)
    assert ring.write(total.narrow) == ring.write(wanted.narrow)
    assert total.write() == wanted.write()


@pytest.mark.parametrize("stage", [KEYS, SHARES, MASKED, UNMASK])
def test_a_drop_out_at_any_stage_leaves_the_sum_of_the_others(stage: str) -> None:
    clients = clients_of(5, [(2, stage)])
    total, counted, _ = run(ASKED, clients, 5)
    # Who goes last has sent its update already: it counts.
    assert counted == ([0, 1, 2, 3, 4] if stage == UNMASK else [0, 1, 3, 4])
    assert total.write() == plain_sum(ASKED, clients, 5, counted).write()


def test_different_clients_may_be_lost_at_every_stage() -> None:
    asked = SecureAggregation(range=0.05, max_weight=100, threshold=0.5)
    lost = [(0, KEYS), (3, SHARES), (5, MASKED), (7, UNMASK)]
    clients = clients_of(9, lost)
    total, counted, _ = run(asked, clients, 9)
    assert counted == [1, 2, 4, 6, 7, 8]
    assert total.write() == plain_sum(asked, clients, 9, counted).write()


@pytest.mark.parametrize("stage", [KEYS, SHARES, MASKED, UNMASK])
def test_below_the_threshold_nothing_is_opened(stage: str) -> None:
    clients = clients_of(5, [(1, stage), (2, stage)])  # 4 of 5 must stay
    with pytest.raises(PacketError, match=r"3 of 5 clients sent|3 shares came, 4 right ones"):
        run(ASKED, clients, 5)


def test_the_mean_is_the_weighted_mean_to_the_rounding_that_is_stated() -> None:
    clients = clients_of(4)
    opened, grid, messages = start(ASKED, clients, 4)
    mean, counted = opened.close(masked_replies(opened, grid, messages))
    assert len(counted) == 4 and mean.weight == pytest.approx(100, abs=1e-3)
    weights = np.array([10, 20, 30, 40]) / 100
    packets = [read_packet(packet_for(clients.tuned[slot]), LAYOUT) for slot in range(4)]
    wanted = sum(w * packet.numbers() for w, packet in zip(weights, packets, strict=True))
    # Each client rounds to a multiple of range * max_weight / levels, over the sum of weights.
    step = ASKED.range * 100 / ASKED.levels / 100
    assert np.abs(mean.survivors.numbers - wanted).max() <= 4 * step + 1e-7
    head = sum(w * packet.dense()["head"] for w, packet in zip(weights, packets, strict=True))
    assert np.abs(mean.survivors.dense["head"] - head).max() <= 4 * step + 1e-7
    # Counters moved by 1, 2, 3 and 4: by 3 in the mean.
    assert (mean.survivors.raw["steps"] == BASE["steps"] + 3).all() and mean.clipped == 0.0


# --- What the server sees ------------------------------------------------------------------------


def test_a_masked_vector_is_uniform_whatever_the_update_is() -> None:
    """Chi-square of the bytes of many masked vectors, for two very different updates."""
    asked = SecureAggregation(range=0.05, max_weight=100, bits=16, ring=24)
    counts = {}
    for name, tuned in (("zero", dict(BASE)), ("large", update(1, 100.0))):
        found = np.zeros((3, 256), dtype=int)
        for _ in range(12):
            clients = clients_of(4)
            clients.tuned = {**clients.tuned, 1: tuned}
            opened, grid, messages = start(asked, clients, 4)
            reply = masked_replies(opened, grid, messages)[1]
            body = next(iter(reply.content["arrays"].values())).data[-opened._shape.size :]
            numbers = np.frombuffer(body[: 3 * (SURVIVORS + 3)], np.uint8).reshape(-1, 3)
            found += np.stack([np.bincount(numbers[:, at], minlength=256) for at in range(3)])
        expected = found.sum(axis=1, keepdims=True) / 256
        counts[name] = ((found - expected) ** 2 / expected).sum(axis=1)
    # 255 degrees of freedom; for random masks each of the six lies below 377 with probability
    # 1 - 1e-6 (and far above for a vector without its mask, tested below).
    assert all((chi < 377).all() for chi in counts.values()), counts
    bare = integers(dict(BASE), 10.0, asked, 4, 1)
    plain = np.frombuffer(asked.ring_for(4).write(bare.narrow), np.uint8)
    histogram = np.bincount(plain, minlength=256) * 12
    assert ((histogram - histogram.mean()) ** 2 / histogram.mean()).sum() > 377


def test_a_reply_names_neither_weight_nor_metrics_unless_they_are_asked_for() -> None:
    for asked, wanted in (((), {}), (("loss", "absent"), {"loss": 1.5})):
        clients = clients_of(3)
        chosen = SecureAggregation(range=1.0, max_weight=100, metrics=asked)
        opened, grid, messages = start(chosen, clients, 3)
        for reply in masked_replies(opened, grid, messages):
            assert set(reply.content) == {"arrays", "metrics"}
            assert dict(reply.content["metrics"]) == wanted


def test_the_same_update_is_masked_differently_in_each_session() -> None:
    def bodies() -> list[bytes]:
        opened, grid, messages = start(ASKED, clients_of(3), 3)
        replies = masked_replies(opened, grid, messages)
        return [next(iter(r.content["arrays"].values())).data for r in replies]

    assert all(one != other for one, other in zip(bodies(), bodies(), strict=True))


# --- Numbers -------------------------------------------------------------------------------------


def test_rounding_is_unbiased_and_depends_on_the_client() -> None:
    tuned = {**BASE, "weight": BASE["weight"] + np.float32(0.0123)}
    asked = SecureAggregation(range=1.0, max_weight=1, bits=4)
    own, ring = own_update(tuned), asked.ring_for(3)
    draws = np.stack(
        [
            ring.signed(to_vector(own, BASE, 1.0, announced(asked), told(slot)).narrow)
            for slot in range(4000)
        ]
    )[:, :SURVIVORS]
    exact = own.numbers(0, own.count).astype(np.float64) * asked.levels
    standard_error = np.sqrt((exact % 1) * (1 - exact % 1) / len(draws))
    assert (np.abs(draws.mean(axis=0) - exact) <= 5 * standard_error).all()
    assert len({draw.tobytes() for draw in draws}) > 1000  # one, if all rounded alike


def test_values_outside_the_range_are_clipped_and_counted() -> None:
    tuned = {**BASE, "weight": BASE["weight"] + 1, "steps": BASE["steps"] + 2**40}
    clients = clients_of(3)
    clients.tuned = dict.fromkeys(range(3), tuned)
    opened, grid, messages = start(ASKED, clients, 3)
    mean, _ = opened.close(masked_replies(opened, grid, messages))
    step = ASKED.range * 100 / ASKED.levels / 60  # 60 is the sum of weights
    assert np.abs(mean.survivors.numbers - ASKED.range).max() <= 3 * step
    assert (mean.survivors.raw["steps"] == BASE["steps"] + 2**23).all()
    assert mean.clipped == pytest.approx((SURVIVORS + 2) / (SURVIVORS + 5))


def test_a_weight_above_the_largest_counts_as_the_largest() -> None:
    clients = clients_of(3)
    clients.weights = {0: 1e9, 1: 100.0, 2: 0.0}
    opened, grid, messages = start(ASKED, clients, 3)
    mean, _ = opened.close(masked_replies(opened, grid, messages))
    assert mean.weight == 200.0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused_on_the_client(weight: float) -> None:
    with pytest.raises(DeltaError, match="the weight of this client's update is"):
        weight_steps(weight, announced(ASKED))


def test_all_weights_zero_open_nothing() -> None:
    clients = clients_of(3)
    clients.weights = dict.fromkeys(range(3), 0)
    opened, grid, messages = start(ASKED, clients, 3)
    with pytest.raises(PacketError, match="weight 0"):
        opened.close(masked_replies(opened, grid, messages))


def test_a_mask_that_is_left_over_is_noticed() -> None:
    total = plain_sum(ASKED, clients_of(3), 3, [0, 1, 2])
    total.narrow[:] += np.random.default_rng(0).integers(0, 2**24, total.narrow.size, np.uint32)
    with pytest.raises(PacketError, match="makes no sense"):
        to_mean(total, TARGET, announced(ASKED), 3)


@given(
    st.integers(1, 8).flatmap(
        lambda width: st.tuples(
            st.just(width),
            st.lists(st.integers(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1), max_size=20),
        )
    )
)
def test_a_ring_keeps_every_integer_that_fits(case: tuple[int, list[int]]) -> None:
    width, numbers = case
    ring = Ring(width)
    data = ring.write(ring.residues(np.array(numbers, dtype=np.int64)))
    assert len(data) == width * len(numbers)
    assert ring.signed(ring.read(data)).tolist() == numbers


@given(st.integers(1, 2**15 - 1), st.integers(2, 32))
def test_the_ring_is_the_narrowest_that_holds_the_largest_sum(clients: int, bits: int) -> None:
    largest = 2 ** (bits - 1) - 1
    ring = ring_for(clients, largest)
    top = np.array([clients * largest, -clients * largest])
    assert ring.signed(ring.residues(top)).tolist() == top.tolist()
    narrower = 2 ** (8 * (ring.width - 1) - 1) - 1
    assert clients * largest > narrower
    assert bits_needed(clients, largest) == int(np.ceil(np.log2(clients * largest + 1))) + 1


@pytest.mark.parametrize(
    ("bits", "clients", "width"), [(12, 16, 2), (16, 2, 3), (16, 256, 3), (16, 257, 4), (32, 9, 5)]
)
def test_golden_ring_widths(bits: int, clients: int, width: int) -> None:
    assert ring_for(clients, 2 ** (bits - 1) - 1).width == width


# --- Secrets -------------------------------------------------------------------------------------


def test_any_shares_above_the_threshold_give_the_secret_and_fewer_do_not() -> None:
    secret = bytes(range(16))
    shares = dict(enumerate(split(secret, 3, 5)))
    rng = random.Random(0)
    for _ in range(10):
        some = dict(rng.sample(sorted(shares.items()), 3))
        assert combine(some, 3, secret.__eq__) == (secret, frozenset(), True)
    assert combine(dict(list(shares.items())[:2]), 3, lambda _: True) is None
    assert combine(dict(list(shares.items())[:2]), 2, secret.__eq__) is None


def test_both_ends_agree_on_a_key_and_others_or_other_sessions_do_not() -> None:
    one, other, third = (keys.new_secret() for _ in range(3))
    session = bytes(16)

    def key(own: bytes, peer: bytes, session: bytes = session, label: str = "x") -> bytes:
        return keys.agree(own, keys.public_key(peer), session, label)

    assert key(one, other) == key(other, one)
    different = [key(one, third), key(one, other, bytes([1] * 16)), key(one, other, label="y")]
    assert key(one, other) not in different


def test_golden_masks() -> None:
    """Fixed, so that two versions of the package can mask together."""
    secret, session = bytes(range(16)), bytes(16)
    assert keys.public_key(secret).hex() == GOLDEN["public"]
    assert keys.keystream(keys.derived(secret, session, "self|3"), 8).hex() == GOLDEN["self"]
    public = keys.public_key(bytes(16))
    assert (
        keys.keystream(keys.agree(secret, public, session, "pair|1|3"), 8).hex() == GOLDEN["pair"]
    )


GOLDEN = {
    "public": "3720fd296b345c9062996b557163c95879439adb9bf0b64e4d8fc541fc04983c",
    "self": "580377f5bbe5116a",
    "pair": "4dbe71362a27b20e",
}


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_makes_no_secret_is_refused(public: bytes) -> None:
    with pytest.raises(PacketError, match="is no key"):
        keys.check(public)


def test_a_letter_is_read_by_its_receiver_alone_and_only_unchanged() -> None:
    one, other, session = bytes(16), bytes([1] * 16), bytes([2] * 16)
    sealed = keys.seal(one, keys.public_key(other), session, 1, 2, b"two shares")
    read = (other, keys.public_key(one), session, 1, 2, sealed)
    assert keys.unseal(*read) == b"two shares"
    for at, bad in (
        (0, bytes([3] * 16)),
        (1, keys.public_key(other)),
        (2, bytes(16)),
        (3, 2),
        (4, 1),
        (5, sealed[:-1] + bytes([sealed[-1] ^ 1])),
    ):
        with pytest.raises(PacketError, match="changed on their way"):
            keys.unseal(*read[:at], bad, *read[at + 1 :])


# --- Neighbours ----------------------------------------------------------------------------------


@given(st.integers(3, 40), st.integers(1, 6), st.integers(0, 2**32))
def test_neighbours_are_mutual_as_many_as_asked_for_and_connected(
    count: int, half: int, seed: int
) -> None:
    slots = [3 * slot + 1 for slot in range(count)]
    graph = seat(slots, min(2 * half, count - 1), random.Random(seed))
    assert sorted(graph) == slots
    for one, near in graph.items():
        assert len(near) == min(2 * half, count - 1) and one not in near
        assert list(near) == sorted(set(near)) and all(one in graph[peer] for peer in near)
    assert is_connected(graph, slots)


def test_a_cut_between_clients_is_noticed() -> None:
    table = {slot: ((slot - 1) % 6, (slot + 1) % 6) for slot in range(6)}
    assert is_connected(table, [0, 1, 2]) and not is_connected(table, [0, 1, 3, 4])
    assert staying(table, [0, 1, 2, 4], 2) == {0, 1, 2} and staying(table, [0, 2, 4], 2) == set()


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"range": 0.0}, "range must be a finite number above 0, got 0.0"),
        ({"max_weight": float("inf")}, "max_weight must be a finite number"),
        ({"dense_range": -1.0}, "dense_range must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"bits": 33}, "bits must be an integer from 2 to 32, got 33"),
        ({"ring": 20}, r"ring must be one of \[8, 16, 24, 32, 40, 48, 56, 64\] or None, got 20"),
        ({"neighbours": 3}, "neighbours must be an even number"),
        ({"threshold": 0.3}, r"threshold must be a part in \[0.5, 1\)"),
        ({"threshold": 1}, "threshold must be 2 clients or more"),
    ],
)
def test_settings_outside_their_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SecureAggregation(**{"range": 1.0, "max_weight": 1.0} | options)


@pytest.mark.parametrize(
    ("options", "clients", "match"),
    [
        ({"ring": 16}, 3, "needs a ring of 18 bits, got ring = 16; use a wider one, or fewer bits"),
        ({}, 2, "needs 3 to 32767 clients in a round, got 2"),
        ({}, 2**15, "needs 3 to 32767 clients"),
    ],
)
def test_rounds_that_do_not_fit_are_refused(
    options: dict[str, Any], clients: int, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        SecureAggregation(range=1.0, max_weight=1.0, **options).ring_for(clients)


@pytest.mark.parametrize("threshold", [2, 5])
def test_a_number_of_clients_as_threshold_must_fit_those_that_hold_shares(threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold must be more than half of the 4 clients"):
        SecureAggregation(range=1.0, max_weight=1.0, threshold=threshold).needed(4)


@pytest.mark.parametrize(
    ("clients", "neighbours", "needed", "least"),
    [(3, None, 3, 3), (4, None, 3, 3), (10, None, 7, 7), (100, None, 67, 67), (100, 20, 15, 72)],
)
def test_more_than_two_thirds_must_stay_by_default(
    clients: int, neighbours: int | None, needed: int, least: int
) -> None:
    asked = SecureAggregation(range=1.0, max_weight=1.0, neighbours=neighbours)
    assert (asked.needed(clients), asked.least(clients)) == (needed, least)


def test_integers_of_a_shape_have_a_known_size_and_others_are_refused() -> None:
    shape = Shape(Ring(3), 5, 2)
    assert shape.size == 3 * 5 + 8 * 4 and len(shape.zeros().write()) == shape.size
    with pytest.raises(PacketError, match="have 46 bytes, expected 47"):
        shape.read(bytes(46))


def test_weights_are_whole_steps() -> None:
    assert weight_steps(25.0, announced(ASKED)) == WEIGHT_STEPS // 4 and MASK.slot == -1
