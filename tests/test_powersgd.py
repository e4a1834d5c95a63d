"""PowerSGD's factors against a transcription of Vogels et al., and those of strangers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app, step_of
from federations import CLIENTS, fedavg, run
from flwr.app import Context, Message
from golden import forge, take_apart
from hypothesis import given, settings
from hypothesis import strategies as st
from papers import SHAPES, Changes, Client, assert_near, change
from test_wire_format import read as second_reader
from test_wire_format import specs_of

from fl_darex.clients import DarexMod
from fl_darex.compression import Uplink
from fl_darex.compression.products import Products, factored, rank_of
from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason
from fl_darex.flower.records import to_record
from fl_darex.masks import SHARED, mask_key, words
from fl_darex.strategies import DarexStrategy

MATRICES = {"a.weight": (8, 9), "c.weight": (5, 12)}
"""Those of `SHAPES` that have factors of rank 2."""


def client(rank: int = 2, **asked: Any) -> Client:
    return Client("powersgd", 0.0, options={"rank": rank}, **asked)


def start(name: str, rank: int, columns: int) -> np.ndarray:
    """The first Q: numbers from -1 to 1, drawn from the seed and the name."""
    key = np.array([mask_key(3, 0, SHARED, f"{name}|right")], dtype=np.uint64)
    count = rank * columns
    drawn = words(key, 0, count + count % 2)[:count].astype(np.float64)
    return (drawn / 2**31 - 1).reshape(rank, columns).T


def low_rank(changes: list[Changes], rank: int) -> list[Changes]:
    """Algorithms 1 and 2 of the paper with one worker, without momentum."""
    e = {name: np.zeros(shape) for name, shape in MATRICES.items()}
    q = {name: start(name, min(rank, *shape), shape[1]) for name, shape in MATRICES.items()}
    said = []
    for one in changes:
        told = dict(one)  # vectors are sent as they are
        for name, shape in MATRICES.items():
            m = e[name] + one[name].reshape(shape)
            p, _ = np.linalg.qr(m @ q[name])  # signs do not matter to the product
            q[name] = m.T @ p
            e[name] = m - p @ q[name].T
            told[name] = (p @ q[name].T).reshape(SHAPES[name])
        said.append(told)
    return said


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rounds_are_those_of_the_paper(rank: int) -> None:
    one, changes = client(rank), [change(0, t) for t in range(1, 11)]
    for t, expected in enumerate(low_rank(changes, rank), start=1):
        assert_near(one.sent(changes[t - 1], t), expected, 1e-10)
        for name, shape in MATRICES.items():
            assert np.linalg.matrix_rank(expected[name].reshape(shape)) == rank


@pytest.mark.parametrize("values", ["fp64", "fp32", "fp16", "int8", "eden4"])
def test_what_is_delivered_and_what_is_kept_are_all_that_there_was(values: str) -> None:
    one = client(values=values)
    kind = np.float64 if values == "fp64" else np.float32
    summed = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for t in range(1, 8):
        now = {name: array.astype(kind) for name, array in change(0, t).items()}
        sent = one.sent(now, t)
        for name, shape in SHAPES.items():
            summed[name], total[name] = summed[name] + now[name], total[name] + sent[name]
            rest = one.state["left of " + name].reshape(shape)
            np.testing.assert_allclose(total[name] + rest, summed[name], atol=2e-5)


def test_a_change_of_that_rank_arrives_at_once() -> None:
    rng, one = np.random.default_rng(1), client()
    thin = {"w": rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20))}
    assert_near(one.sent(thin, 1), thin, 1e-10)
    assert len(one.packet) == 96 + 8 * 2 * (30 + 20)


def test_a_matrix_that_rests_a_while_or_has_a_lower_rank_is_found_again() -> None:
    rng, one = np.random.default_rng(1), client()
    thin = {"w": np.outer(rng.standard_normal(30), rng.standard_normal(20))}
    rests = {"w": np.zeros((30, 20))}
    for t, now in enumerate((rests, thin, rests, thin), start=1):
        assert_near(one.sent(now, t), now, 1e-10)
    full, total = {"w": rng.standard_normal((30, 20))}, np.zeros((30, 20))
    for t in range(5, 35):  # two of twenty directions a round
        total += one.sent(full if t == 5 else rests, t)["w"]
    assert np.linalg.norm(total - full["w"]) < 0.01 * np.linalg.norm(full["w"])


def test_small_and_thin_tensors_are_sent_entry_by_entry() -> None:
    assert rank_of(Layout.of({"w": np.zeros((4, 4))}).pruned[0], 1) == 1
    assert rank_of(Layout.of({"w": np.zeros((4, 4))}).pruned[0], 2) == 0
    assert rank_of(Layout.of({"w": np.zeros((2, 50))}).pruned[0], 9) == 0
    for shape in ((0, 5), (5, 0), (), (7,), (1, 9)):
        assert rank_of(Layout.of({"w": np.zeros(shape)}).pruned[0], 1) == 0
    one, shapes = client(), {"s": (), "t": (4, 4), "v": (7,), "e": (0, 5), "w": (9, 9)}
    now = change(0, 1, shapes)
    sent = one.sent(now, 1)
    assert all((sent[name] == now[name]).all() for name in "stve")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_part_of_the_products_is_that_of_all(data: st.DataObject) -> None:
    layout = Layout.of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    rng = np.random.default_rng(2)
    values = {
        spec.name: rng.standard_normal(spec.numel).astype(np.float32)
        for spec in factored(layout, 2).pruned
    }
    products = Products(layout, values)
    whole = products.numbers(0, products.count)
    first = data.draw(st.integers(0, products.count))
    end = data.draw(st.integers(first, products.count))
    assert products.numbers(first, end).tobytes() == whole[first:end].tobytes()
    assert products.numbers(first, end, 0.5).tobytes() == (whole[first:end] / 2).tobytes()


# --- packets ----------------------------------------------------------------------------------

CHANGE = {"bias": np.float32([1, -2]), "weight": np.outer([1, 2, 0, 2], [3, 0, 0, 4, 0])}


def test_a_packet_is_one_of_tensors_that_are_factors() -> None:
    one = client(1, values="fp32")
    moved = one.sent({name: array.astype(np.float32) for name, array in CHANGE.items()}, 1)
    np.testing.assert_allclose(moved["weight"], CHANGE["weight"], atol=1e-5)
    fields, _ = take_apart(one.packet)
    assert (fields["mask_kind"], fields["keep"], fields["survivors"]) == (1, 2**32, 2 + 4 + 5)
    inside = {
        "bias": np.zeros(2, np.float32),
        "weight|left": np.zeros((1, 4), np.float32),
        "weight|right": np.zeros((1, 5), np.float32),
    }
    said = second_reader(one.packet, specs_of(inside))
    assert said["bias"] == [1, -2]
    product = np.outer(said["weight|left"], said["weight|right"])
    np.testing.assert_allclose(product, CHANGE["weight"], atol=1e-5)
    # P has the length 1, and one of two signs.
    left = np.array(said["weight|left"]) * np.sign(said["weight|left"][0])
    np.testing.assert_allclose(left, np.float32([1, 2, 0, 2]) / 3, atol=1e-6)


def test_factors_of_another_rank_and_other_sizes_are_refused() -> None:
    one, other = client(2), client(1)
    now, terms = change(0, 1), one.terms(1)
    layout = one.uplink.layout(now)
    one.sent(now, 1)
    other.sent(now, 1)
    how = one.uplink.how
    with pytest.raises(PacketError, match="layout fingerprint") as caught:
        how.open(other.packet, layout, terms)
    assert caught.value.reason == Reason.LAYOUT
    plain = Client("magnitude", 0.0)
    plain.sent(now, 1)
    for packet in (one.packet[:-8], one.packet + bytes(8), forge(one.packet, survivors=2**40)):
        with pytest.raises(PacketError):
            how.open(packet, layout, terms)
    with pytest.raises(PacketError, match="mask kind"):
        how.open(plain.packet, layout, terms)


def test_factors_whose_product_is_infinite_are_refused() -> None:
    one = client(1, values="fp32")
    now = {"w": np.ones((4, 5), np.float32)}
    one.sent(now, 1)
    layout, terms = one.uplink.layout(now), one.terms(1)
    _, body = take_apart(one.packet)
    numbers = np.frombuffer(body, "<f4").copy()
    for scale, sound in ((1e15, True), (1e20, False)):
        numbers[[0, 5]] = scale, scale
        packet = forge(one.packet, body=numbers.tobytes())
        if sound:
            assert np.isfinite(one.uplink.how.open(packet, layout, terms).numbers(0, 20)).all()
            continue
        with pytest.raises(PacketError, match="product may be infinite") as caught:
            one.uplink.how.open(packet, layout, terms)
        assert caught.value.reason == Reason.VALUES


# --- in a federation --------------------------------------------------------------------------


def test_the_server_adds_up_the_clients_products() -> None:
    made = DarexStrategy(
        fedavg(), 0.0, method="powersgd", rank=3, values="fp32", dense_below=0, seed=3
    )
    found, total = run(made, 2), {name: base.astype(np.float64) for name, base in BASE.items()}
    for slot in range(CLIENTS):
        one = client(3, values="fp32", slot=slot)
        for t in (1, 2):
            now = {name: step_of(slot, t, base.shape) for name, base in BASE.items()}
            for name, moved in one.sent(now, t).items():
                total[name] = total[name] + (slot + 1) / 10 * moved
    for name, expected in total.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-6)
    # What is expected of a message is what it takes, about.
    expected_bytes = made.check(to_record(BASE), CLIENTS).up_bytes
    ups = [entry.up_bytes for entry in made.ledger.entries if entry.kind == "train"]
    assert all(abs(up - expected_bytes) < 0.1 * up for up in ups)


def test_tensors_that_are_one_are_sent_once_and_stay_one() -> None:
    twice = {"a": np.zeros((30, 40), np.float32), "z": np.zeros((30, 40), np.float32)}
    app = numpy_app([DarexMod(), _twin])
    made = DarexStrategy(fedavg(), 0.0, method="powersgd", seed=2)
    found = run(made, 3, app=app, base=twice)
    assert made.counted == CLIENTS
    assert (found["a"] == found["z"]).all() and found["a"].any()


def _twin(message: Message, context: Context, call_next: Any) -> Message:
    reply = call_next(message, context)
    for record in reply.content.array_records.values():
        if "a" in record:
            record["z"] = record["a"]
    return reply


@pytest.mark.parametrize(
    ("p", "more", "said"),
    [
        (0.9, {}, r"^p = 0\.9 drops entries, .* set p = 0"),
        (0.0, {"q": 0.5}, r"^q = 0\.5 makes up at once"),
        (
            0.0,
            {"options": {"rank": 0}},
            r"^rank = 0 is not allowed; it must be a whole number from",
        ),
        (0.0, {"mask": "round"}, r"set mask = 'client'"),
    ],
)
def test_what_factors_have_no_use_for_is_refused(p: float, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Uplink.of("powersgd", p, **more)
