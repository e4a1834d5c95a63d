"""Replies in other types than the model's: nobody's type decides the precision of all."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from apps import numpy_app
from federations import Federation, fedavg, rounds
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian

from fl_darex.change import holds
from fl_darex.clients import DarexMod
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy


def answering(values: list[dict[str, np.ndarray]], packs: set[int] = frozenset()) -> Any:
    """Clients that answer with these tensors; those in ``packs`` have the mod."""
    mod = DarexMod()

    def answer(message: Message, context: Any, call_next: Any = None) -> Message:
        arrays = to_record(values[int(context.node_config["partition-id"])])
        content = RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    def maybe(message: Message, context: Any, call_next: Any) -> Message:
        if context.node_config["partition-id"] in packs:
            return mod(message, context, answer)
        return answer(message, context)

    return numpy_app([maybe])


def mean_of(
    replies: list[np.ndarray], sent: np.ndarray, kind: type[FedAvg] = FedAvg, **settings: Any
) -> np.ndarray:
    """The model after one round in which these tensors come back."""
    packs = settings.pop("packs", frozenset())
    values = [{"w": reply} for reply in replies]
    options: dict[str, Any] = dict(p=0.0, values="fp32", downlink="dense") | settings
    strategy = DarexStrategy(fedavg(kind, len(values)), **options)
    grid = Federation(answering(values, packs), len(values))
    return to_arrays(rounds(strategy, grid, 1, {"w": sent}).arrays)["w"]


@pytest.mark.parametrize("order", sorted(permutations(["f2", "f4", "f8"])))
def test_the_widest_reply_decides_the_precision_whoever_is_first(order: tuple[str, ...]) -> None:
    values = {"f2": 6e4, "f4": 1.1e5, "f8": 1 / 3}
    found = mean_of([np.full(50, values[kind], kind) for kind in order], np.zeros(50, np.float32))
    expected = np.mean([np.dtype(kind).type(value) for kind, value in values.items()], dtype="f8")
    assert found.dtype == np.float32
    # Each term and each of two additions is rounded in float32.
    np.testing.assert_allclose(found, expected, rtol=4 * 2**-24)


def test_a_float16_reply_does_not_make_the_others_overflow() -> None:
    sent = np.zeros(50, np.float32)
    replies = [np.zeros(50, np.float16), *(np.full(50, 1e5, np.float32) for _ in range(3))]
    assert (mean_of(replies, sent) == 7.5e4).all()
    # Beside a packet, too.
    assert (mean_of(replies, sent, packs={3}) == 7.5e4).all()


def test_a_float16_reply_is_averaged_in_the_precision_of_a_float32_model() -> None:
    one, other = np.full(50, 1, np.float16), np.full(50, 2**-11, np.float16)
    found = mean_of([one, other], np.zeros(50, np.float32))
    assert (found == 0.5 + 2**-12).all()  # float16 would lose the second


@pytest.mark.parametrize("kind", [FedAvg, FedMedian])
@pytest.mark.parametrize("packs", [set(), {0}])
def test_a_float64_model_is_averaged_in_float64(kind: type[FedAvg], packs: set[int]) -> None:
    rng = np.random.default_rng(0)
    sent = rng.normal(size=200)
    replies = [rng.normal(size=200) for _ in range(3)]
    found = mean_of(replies, sent, kind, packs=packs, mask="round")
    assert found.dtype == np.float64
    combined = np.mean if kind is FedAvg else np.median
    # A packet writes changes, of size up to 8 here, in float32.
    bound = 2**-52 if not packs else 8 * 2**-24 * (1 / 3 if kind is FedAvg else 1)
    np.testing.assert_allclose(found, combined(replies, axis=0), rtol=0, atol=4 * bound)


def test_packets_of_many_clients_do_not_lose_a_float64_models_bits_one_by_one() -> None:
    rng = np.random.default_rng(1)
    sent = rng.normal(size=200)
    steps = [2.0**-10 * rng.integers(-8, 9, 200) for _ in range(8)]  # exact in float32
    found = mean_of([sent + step for step in steps], sent, packs=set(range(8)))
    # (sent + step) - sent is step to 2**-52; what float32 sums would lose is 2**-33.
    np.testing.assert_allclose(found, sent + np.mean(steps, axis=0), rtol=0, atol=2**-48)


@pytest.mark.parametrize(
    ("sent", "reply", "fits"),
    [
        (np.uint8, np.array([0.0, 255.4]), True),
        (np.uint8, np.array([255.6]), False),
        (np.uint8, np.array([-1]), False),
        (np.int64, np.array([1e30], np.float32), False),
        (np.int64, np.array([2.0**63]), False),
        (np.int64, np.array([-(2.0**63)]), True),
        (np.int64, np.array([2**63], np.uint64), False),
        (np.int32, np.array([np.nan, 1]), False),
        (np.int32, np.array([], np.float64), True),
        (np.int8, np.array([True]), True),
        (np.bool_, np.array([7]), True),
        (np.float16, np.array([1e30]), True),
    ],
)
def test_a_counter_comes_back_as_one_or_the_reply_does_not_count(
    sent: type, reply: np.ndarray, fits: bool
) -> None:
    assert holds(np.dtype(sent), reply) == fits
    if np.dtype(sent).kind == "f":
        return
    before = np.zeros(reply.shape, sent)
    delta = Delta({"n": reply}, {"n": before})
    if fits:
        assert delta.raw("n").dtype == sent
    else:
        with pytest.raises(DeltaError, match=r"'n' holds NaN or numbers that u?int\d+, which"):
            delta.raw("n")
    # Without the mod the reply does not count, and the run goes on with the other's.
    found = mean_of([reply, before + 1], before)
    expected = np.rint(0.5 * np.rint(reply.astype(float)) + 0.5) if fits else before + 1.0
    assert found.dtype == sent and (found == expected.astype(sent)).all()
