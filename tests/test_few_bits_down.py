"""The way down in one to four bits: what rounding takes away is kept, and both sides agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fl_darex.compression.downlink import POLICIES
from fl_darex.compression.downlink.policy import StepTerms
from fl_darex.compression.update import SparseUpdate
from fl_darex.delta import Delta, Layout
from fl_darex.masks import ONE
from fl_darex.positions import SeededMask
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.reader import read_packet

SIZE = 3000
RNG = np.random.default_rng(2)


def terms(values: str, round_: int = 1, **more: Any) -> StepTerms:
    given: dict[str, Any] = {"seed": 1, "version": bytes(8), "keep": ONE // 10, "masks": None}
    return StepTerms(round=round_, values=values, **given | more)


def applied(packet: bytes, held: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    return dict(SparseUpdate.of_packet(read_packet(packet, layout)).values(held))


@pytest.mark.parametrize("policy", ["update", "server"])
@pytest.mark.parametrize("values", ["eden1", "eden2", "eden4"])
def test_what_is_sent_and_what_is_kept_add_up_to_the_step(policy: str, values: str) -> None:
    held = {"w": RNG.standard_normal(SIZE).astype(np.float32), "b": np.ones(5, np.float32)}
    after = {k: v + RNG.standard_normal(v.shape).astype(np.float32) for k, v in held.items()}
    layout = Layout.of(held, {"b"})
    packet, kept = POLICIES[policy].pack(Delta(after, held, layout=layout), terms(values), {})
    moved = applied(packet or b"", held, layout)
    for name in held:
        total = (moved[name] - held[name]) + kept[name]
        np.testing.assert_allclose(total, after[name] - held[name], atol=2e-6)


@pytest.mark.parametrize("policy", ["update", "server"])
@pytest.mark.parametrize("values", ["eden1", "fp16"])
def test_infinite_entries_stay_and_nothing_is_kept_of_them(policy: str, values: str) -> None:
    held = {"w": np.zeros(SIZE, np.float32), "mask": np.full((9, 9), -np.inf, np.float32)}
    held["mask"][np.tri(9) > 0] = 0
    kept, layout = {}, Layout.of(held)
    for round_ in range(1, 5):
        after = held | {"w": held["w"] + RNG.standard_normal(SIZE).astype(np.float32)}
        packet, kept = POLICIES[policy].pack(
            Delta(after, held, layout=layout), terms(values, round_), kept
        )
        held = applied(packet or b"", held, layout)
        assert all(np.isfinite(numbers).all() for numbers in kept.values())
        assert (np.isneginf(held["mask"]) == (np.tri(9) == 0)).all()


@pytest.mark.parametrize("values", ["eden1", "eden4"])
def test_what_is_kept_does_not_grow_and_the_clients_model_follows_the_servers(values: str) -> None:
    held = {"w": np.zeros(SIZE, np.float32)}
    server, kept, layout = held, {}, Layout.of(held)
    noise = CODINGS[values].nmse  # type: ignore[attr-defined]
    for round_ in range(1, 30):
        change = {"w": RNG.standard_normal(SIZE).astype(np.float32)}
        after = {"w": held["w"] + change["w"]}
        packet, kept = POLICIES["update"].pack(
            Delta(after, held, layout=layout), terms(values, round_), kept
        )
        held = applied(packet or b"", held, layout)
        server = {"w": server["w"] + change["w"]}
        np.testing.assert_allclose(held["w"] + kept["w"], server["w"], atol=1e-4)
        # Each round keeps `noise` of the square of what it was to send: a geometric sum.
        assert np.square(kept["w"]).sum() < 1.3 * SIZE * noise / (1 - noise)


def test_only_the_entries_of_this_rounds_masks_are_sent_and_the_rest_waits() -> None:
    held, kept = {"w": np.zeros(SIZE, np.float32)}, {"w": np.full(SIZE, 5.0, np.float32)}
    layout, mask = Layout.of(held), SeededMask(1, 1, -1, ONE // 10)
    (positions,) = mask.in_layout(layout).values()
    after = {"w": np.zeros(SIZE, np.float32)}
    after["w"][positions] = 1.0
    delta = Delta(after, held, layout=layout)
    packet, left = POLICIES["update"].pack(delta, terms("eden4", masks=[mask]), kept)
    moved = applied(packet or b"", held, layout)["w"]
    others = np.setdiff1d(np.arange(SIZE), positions)
    assert not moved[others].any() and (left["w"][others] == 5.0).all()
    assert moved[positions].mean() == pytest.approx(6.0, rel=0.02)  # the step and what was kept


def test_codings_that_round_little_keep_nothing() -> None:
    held = {"w": np.zeros(SIZE, np.float32)}
    after = {"w": RNG.standard_normal(SIZE).astype(np.float32)}
    for values in ("fp32", "fp16", "int8", "int4"):
        delta = Delta(after, held, layout=Layout.of(held))
        assert POLICIES["update"].pack(delta, terms(values), {})[1] == {}


def test_secure_aggregation_refuses_rotations_on_the_way_up_and_takes_them_down() -> None:
    secure = SecureAggregation(range=1.0, max_weight=100)
    with pytest.raises(ValueError, match="values='eden1' does not go with secure aggregation"):
        DarexStrategy(FedAvg(), p=0.9, mask="round", values="eden1", secure=secure)
    DarexStrategy(FedAvg(), p=0.9, mask="round", downlink_values="eden1", secure=secure)
