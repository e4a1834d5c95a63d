"""One tensor under several names: sent once, and the same under each of them on both ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from apps import numpy_app
from federations import Federation, fedavg, listening, rounds
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedMedian,
)
from hypothesis import given
from hypothesis import strategies as st

from fl_darex.clients import DarexMod
from fl_darex.delta import Layout
from fl_darex.errors import PacketError
from fl_darex.flower.records import PACKET_STYPE, to_arrays, to_record
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy
from fl_darex.ties import read_ties, tie, tied_groups, write_ties

CLIENTS = 4
Arrays = dict[str, np.ndarray]
Local = Callable[[Arrays, int, int], Arrays]


def noise(partition: int, round_: int, shape: Any) -> np.ndarray:
    rng = np.random.default_rng([partition, round_])
    return rng.normal(scale=0.01, size=shape).astype(np.float32)


MODEL: Arrays = {
    "body": noise(90, 0, 3000),
    "lm_head.weight": noise(91, 0, (60, 40)),
    "wte.weight": noise(91, 0, (60, 40)),
}


def as_torch_does(arrays: Arrays, partition: int, round_: int) -> Arrays:
    """Loading leaves the last of the tied names; a state_dict lists the parameter twice."""
    tied = arrays["wte.weight"] * np.float32(0.9) + noise(partition, round_, (60, 40))
    body = arrays["body"] * np.float32(0.9) + noise(partition, round_, 3000)
    return {"body": body, "lm_head.weight": tied, "wte.weight": tied}


def app_of(local: Local, mods: list[Any] | None = None, plain: tuple[int, ...] = ()) -> Any:
    """An app that trains by a function; partitions in ``plain`` have no mod."""
    mod = DarexMod()

    def maybe(message: Message, context: Any, call_next: Any) -> Message:
        if context.node_config["partition-id"] in plain:
            return call_next(message, context)
        return mod(message, context, call_next)

    def train(message: Message, context: Any, call_next: Any) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        partition = int(context.node_config["partition-id"])
        round_ = int(next(iter(message.content.config_records.values()))["server-round"])
        arrays = local(to_arrays(message.content["arrays"]), partition, round_)
        metrics = MetricRecord({"num-examples": 1})
        return Message(
            RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message
        )

    return numpy_app([maybe, *(mods or []), train])


class Watched(Federation):
    """Keeps the names of the arrays in all replies."""

    def pull_messages(self, message_ids: Any) -> Any:
        found = list(super().pull_messages(message_ids))
        self.names = getattr(self, "names", [])
        for reply in found:
            for record in reply.content.array_records.values() if reply.has_content() else ():
                self.names += [n for n, array in record.items() if array.stype == PACKET_STYPE]
        return found

    def sent(self) -> list[str]:
        """The names of the packets that went down."""
        return [
            name
            for message in self.pushed
            for record in message.content.array_records.values()
            for name, array in record.items()
            if array.stype == PACKET_STYPE
        ]


def run(
    local: Local, count: int, base: Arrays = MODEL, kind: Any = None, **options: Any
) -> tuple[Arrays, Watched, DarexStrategy]:
    grid = Watched(app_of(local, plain=options.pop("plain", ())), CLIENTS)
    strategy = DarexStrategy(kind or fedavg(), **options)
    return to_arrays(rounds(strategy, grid, count, base).arrays), grid, strategy


def plain_mean(local: Local, count: int, base: Arrays = MODEL) -> Arrays:
    now = {name: array.astype(np.float64) for name, array in base.items()}
    for round_ in range(1, count + 1):
        sent = {name: array.astype(np.float32) for name, array in now.items()}
        replies = [local(sent, partition, round_) for partition in range(CLIENTS)]
        now = {n: np.mean([r[n].astype(np.float64) for r in replies], axis=0) for n in now}
    return now


# --- over many rounds -------------------------------------------------------------------------


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize(("values", "mask"), [("fp16", "client"), ("int4", "round")])
def test_a_tied_parameter_is_one_for_sixty_rounds(values: str, mask: str, downlink: str) -> None:
    found, grid, strategy = run(
        as_torch_does, 60, p=0.9, values=values, mask=mask, downlink=downlink
    )
    assert strategy.counted == CLIENTS
    assert (found["wte.weight"] == found["lm_head.weight"]).all()
    # What a client holds shrinks by a tenth a round, and noise of .01 / sqrt(.1) comes in.
    assert np.abs(found["wte.weight"]).max() < 1
    assert set(grid.names) == {"darex.tied.2-1"}
    if downlink != "dense":
        assert {name.partition(".tied.")[2] for name in grid.sent()} == {"2-1"}


@pytest.mark.parametrize("downlink", ["dense", "update"])
def test_with_nothing_dropped_it_is_what_it_is_without_us(downlink: str) -> None:
    found, *_ = run(as_torch_does, 5, p=0.0, values="fp32", downlink=downlink)
    for name, array in plain_mean(as_torch_does, 5).items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)


def test_the_packet_is_as_large_as_that_of_a_model_that_has_it_once() -> None:
    once = {name: array for name, array in MODEL.items() if name != "wte.weight"}

    def alone(arrays: Arrays, partition: int, round_: int) -> Arrays:
        found = as_torch_does(arrays | {"wte.weight": arrays["lm_head.weight"]}, partition, round_)
        return {name: found[name] for name in once}

    def sizes(local: Local, base: Arrays) -> list[int]:
        *_, strategy = run(local, 3, base, p=0.9, seed=1)
        return [e.up_bytes for e in strategy.ledger.entries if e.kind == "train"]

    # The name of the array says more: in the object, in its id's place in the tree.
    for tied, single in zip(sizes(as_torch_does, MODEL), sizes(alone, once), strict=True):
        assert single < tied <= single + 40


def test_a_head_that_is_sent_whole_stands_for_the_embedding_that_is_not() -> None:
    options: dict[str, Any] = dict(p=0.9, values="fp32", dense=["wte.weight"])
    found, grid, _ = run(as_torch_does, 5, **options)
    assert set(grid.names) == {"darex.tied.1-2"}
    expected = plain_mean(as_torch_does, 5)["wte.weight"]
    for name in ("wte.weight", "lm_head.weight"):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-6)


# --- what is no tie ---------------------------------------------------------------------------


def test_a_pair_that_starts_equal_and_comes_back_different_is_two_tensors() -> None:
    zeros = {"a": np.zeros(2000, np.float32), "b": np.zeros(2000, np.float32)}

    def apart(arrays: Arrays, partition: int, round_: int) -> Arrays:
        return {
            "a": arrays["a"] + noise(partition, round_, 2000),
            "b": arrays["b"] - noise(partition, round_, 2000),
        }

    found, grid, _ = run(apart, 3, zeros, p=0.0, values="fp32")
    assert {*grid.names, *(name[:7] for name in grid.sent())} == {"darex", "darex.0"}
    for name, array in plain_mean(apart, 3, zeros).items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)


def test_frozen_tensors_that_are_equal_change_neither_bits_nor_names() -> None:
    frozen = {"mask.0": np.full(500, -1e4, np.float32), "mask.1": np.full(500, -1e4, np.float32)}

    def train(arrays: Arrays, partition: int, round_: int) -> Arrays:
        return arrays | {"body": arrays["body"] + noise(partition, round_, 3000)}

    base = {"body": MODEL["body"], **frozen}
    found, grid, _ = run(train, 3, base, p=0.9)
    assert set(grid.names) == {"darex"}
    assert all((found[name] == array).all() for name, array in frozen.items())


def test_two_weights_that_become_one_and_part_again_are_followed() -> None:
    base = {"a": noise(1, 0, 2000), "b": noise(2, 0, 2000)}

    def switching(arrays: Arrays, partition: int, round_: int) -> Arrays:
        moved = {k: v + noise(partition, round_ + len(k), 2000) for k, v in arrays.items()}
        moved["b"] = moved["a"] if round_ == 2 else moved["b"] * np.float32(0.5)
        return moved

    for count in (1, 2, 3):
        found, *_ = run(switching, count, base, p=0.0, values="fp32")
        for name, array in plain_mean(switching, count, base).items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)


# --- clients that differ ----------------------------------------------------------------------


def one_unties(arrays: Arrays, partition: int, round_: int) -> Arrays:
    found = as_torch_does(arrays, partition, round_)
    if partition == 1:
        found["lm_head.weight"] = found["lm_head.weight"] + np.float32(0.01)
    return found


@pytest.mark.parametrize("plain", [(), (0,), (1,), (2, 3)])
def test_a_client_that_unties_what_others_tie_is_right(plain: tuple[int, ...]) -> None:
    found, grid, strategy = run(one_unties, 4, p=0.0, values="fp32", plain=plain)
    assert strategy.counted == CLIENTS
    assert ("darex" in grid.names) == (plain != (1,)) and "darex.tied.2-1" in grid.names
    for name, array in plain_mean(one_unties, 4).items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)


def test_a_client_that_unties_does_not_let_the_others_explode() -> None:
    found, *_ = run(one_unties, 60, p=0.9)
    assert np.abs(found["wte.weight"]).max() < 1  # what the others train
    assert np.sqrt(np.square(found["lm_head.weight"]).mean()) < 1


@pytest.mark.parametrize("p", [0.0, 0.9])
def test_clipping_bounds_what_a_tie_moves(p: float) -> None:
    far = {"a": np.zeros(2000, np.float32), "b": np.full(2000, 5, np.float32)}

    def joining(arrays: Arrays, partition: int, round_: int) -> Arrays:
        return {"a": arrays["a"] + np.float32(1), "b": arrays["a"] + np.float32(1)}

    found, grid, _ = run(joining, 1, far, p=p, values="fp32", clip=1.0)
    assert set(grid.names) == {"darex.tied.1-0"}
    moved = np.concatenate([found[name] - far[name] for name in far]).astype(np.float64)
    assert np.linalg.norm(moved) <= 1 + 1e-5
    if p == 0:  # all clients alike: just as long, and in the direction of the change
        assert np.linalg.norm(moved) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(moved[2000:], -4 * moved[:2000], rtol=1e-3)


# --- other strategies -------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.9])
def test_strategies_that_compare_clients_see_a_tied_tensor_once(p: float) -> None:
    found, *_ = run(
        as_torch_does, 3, p=p, kind=fedavg(FedMedian), values="fp32", mask="round", plain=(3,)
    )
    assert (found["wte.weight"] == found["lm_head.weight"]).all()
    assert (found["wte.weight"] != MODEL["wte.weight"]).any()
    if p == 0:
        now = MODEL
        for round_ in (1, 2, 3):
            replies = [as_torch_does(now, partition, round_) for partition in range(CLIENTS)]
            now = {n: np.median([r[n] for r in replies], axis=0) for n in now}
            now = {n: array.astype(np.float32) for n, array in now.items()}
        for name in now:
            np.testing.assert_allclose(found[name], now[name], rtol=0, atol=1e-6)


def test_a_client_that_unties_is_left_out_where_clients_are_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "flwr")
    with listening(caplog):
        *_, strategy = run(one_unties, 1, kind=fedavg(FedMedian), mask="round")
    assert strategy.counted == CLIENTS - 1
    assert "client 1 does not count this round: other tensors are equal in it" in caplog.text


def test_an_optimizer_and_noise_leave_a_tied_tensor_one() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 1.0, CLIENTS)
    for kind in (fedavg(FedAdam), private):
        found, grid, _ = run(as_torch_does, 3, p=0.9, kind=kind)
        assert (found["wte.weight"] == found["lm_head.weight"]).all()
        assert set(grid.names) == {"darex.tied.2-1"}


def test_secure_aggregation_names_what_looks_like_one_tensor_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "flwr")
    base = MODEL | {"zero.0": np.zeros(9, np.float32), "zero.1": np.zeros(9, np.float32)}

    def train(arrays: Arrays, partition: int, round_: int) -> Arrays:
        return arrays | as_torch_does(arrays, partition, round_)

    secure = SecureAggregation(range=1.0, max_weight=10)
    with listening(caplog):
        found, *_, strategy = run(train, 2, base, p=0.5, mask="round", secure=secure)
    assert strategy.counted == CLIENTS and np.isfinite(found["wte.weight"]).all()
    told = {id(record): record.getMessage() for record in caplog.records}
    (text,) = (text for text in told.values() if "same numbers" in text)
    assert text.startswith(
        "DAREx: lm_head.weight = wte.weight: the same numbers, so perhaps one tensor"
    )


# --- the parts --------------------------------------------------------------------------------

LAYOUT = Layout.of(
    {
        "a": np.zeros(3, np.float32),
        "b": np.zeros(3, np.float32),
        "c": np.zeros((3, 1), np.float32),
        "d": np.zeros(3, np.float64),
        "e": np.zeros(3, np.float32),
        "n": np.zeros(3, np.int64),
        "o": np.zeros(3, np.int64),
    }
)


@pytest.mark.parametrize("text", ["", "1-0", "1-4", "1-0.4-0", "0-1.4-1"])
def test_ties_are_read_as_they_were_written(text: str) -> None:
    layout = read_ties(LAYOUT, text)
    assert write_ties(layout) == text
    assert (layout.fingerprint == LAYOUT.fingerprint) == (not text)


def test_what_a_tensor_is_tied_to_is_in_the_fingerprint() -> None:
    assert read_ties(LAYOUT, "1-0").fingerprint != read_ties(LAYOUT, "1-4").fingerprint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "names '1', which are not two of 7 tensors"),
        ("1-", "names '1-'"),
        ("1-0.", "names ''"),
        ("-1-0", "names '-1-0'"),
        ("1-7", "names '1-7'"),
        ("1-²", "names '1-²'"),
        ("1-" + "0" * 5000, "names '1-000000000000000000'"),
        ("1-0-4", "names '1-0-4'"),
        ("1-1", "ties 'b' twice, to itself"),
        ("1-0.1-4", "ties 'b' twice"),
        ("6-5", "ties 'o' twice, to itself, or although it holds whole numbers"),
        ("2-0", "ties 'c' to 'a', which has another shape or type"),
        ("3-0", "ties 'd' to 'a', which has another shape"),
        ("1-0.0-4", "ties a tensor to 'a', which is tied itself"),
        (".".join(["1-0"] * 9), "ties 'b' twice"),
    ],
)
def test_a_strangers_ties_are_refused_unless_they_can_be(text: str, says: str) -> None:
    with pytest.raises(PacketError, match=f"what comes with the packet {says}"):
        read_ties(LAYOUT, text)


@given(st.text(max_size=20) | st.text("0123456789-.", max_size=20))
def test_any_text_is_ties_or_a_packet_error(text: str) -> None:
    try:
        layout = read_ties(LAYOUT, text)
    except PacketError:
        return
    assert [spec.name for spec in layout] == [spec.name for spec in LAYOUT]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(1, 200))
def test_groups_are_all_tensors_with_equal_bits(kinds: list[int], size: int) -> None:
    contents = [np.zeros(size, np.float32), np.zeros(size, np.float32), np.ones(size, np.float32)]
    contents[1][-1] = -0.0  # equal as a number, and not in its bits
    arrays = {f"t{i}": contents[kind].copy() for i, kind in enumerate(kinds)}
    expected = {tuple(f"t{i}" for i, one in enumerate(kinds) if one == kind) for kind in set(kinds)}
    groups = {tuple(group) for group in tied_groups(Layout.of(arrays), arrays)}
    assert groups == {group for group in expected if len(group) > 1 and size > 1}


@pytest.mark.parametrize("make", [lambda a: a, lambda a: np.asfortranarray(a), lambda a: a[::-1]])
def test_memory_order_does_not_matter(make: Any) -> None:
    one = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"a": make(one), "b": np.array(make(one), order="C")}
    assert tied_groups(Layout.of(arrays), arrays) == [["a", "b"]]


def test_only_what_changed_is_tied() -> None:
    before = {name: np.zeros(4, np.float32) for name in "abc"} | {"x": np.zeros(4), "y": np.ones(4)}
    after = {**before, "a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    assert write_ties(tie(Layout.of(before), after, before)) == "1-0"
    assert tie(Layout.of(before), before, before) == Layout.of(before)
