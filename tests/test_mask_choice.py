"""Masks in a federation: side by side, and chosen by how much the clients agree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federations import Federation, fedavg, listening, rounds, run
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian

from fl_darex.clients import DarexMod
from fl_darex.compression import Terms, Uplink
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.masks import ONE, keep_threshold
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy

MODEL = {"w": np.zeros((200, 500), np.float32)}


def agreeing(share: Callable[[int], float]) -> ClientApp:
    """Clients whose changes are partly the same, by the round."""
    app = ClientApp(mods=[DarexMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        round_ = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        common, own = (np.random.default_rng([round_, n]) for n in (99, partition))
        after = {}
        for name, array in to_arrays(message.content.array_records["arrays"]).items():
            part = share(round_)
            change = part**0.5 * common.normal(size=array.shape)
            change += (1 - part) ** 0.5 * own.normal(size=array.shape)
            after[name] = (array + 0.01 * change).astype(array.dtype)
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": to_record(after), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def told(grid: Federation) -> list[str]:
    """The mask that each round's clients were told to draw."""
    found: dict[int, set[str]] = {}
    for message in grid.pushed:
        for config in message.content.config_records.values():
            if "darex" in config:
                terms = json.loads(str(config["darex"]))
                found.setdefault(terms["round"], set()).add(terms.get("mask", "client"))
    assert all(len(masks) == 1 for masks in found.values())
    return [next(iter(found[round_])) for round_ in sorted(found)]


def drive(
    count: int, share: Callable[[int], float], clients: int = 2, **options: Any
) -> tuple[list[str], DarexStrategy]:
    grid = Federation(agreeing(share), clients)
    strategy = DarexStrategy(fedavg(clients=clients), **{"p": 0.5, "mask": "auto"} | options)
    rounds(strategy, grid, count, MODEL)
    return told(grid), strategy


# --- chosen ---------------------------------------------------------------------------------------


def test_clients_that_agree_get_masks_that_share_nothing_and_are_measured_every_fourth_round():
    masks, strategy = drive(10, lambda round_: 1.0)
    again = ["disjoint"] * 3 + ["client"]
    assert masks == ["client", *again, *again, "disjoint"]
    assert strategy.rho is None  # disjoint masks tell nothing


def test_orthogonal_clients_share_a_mask_and_go_on_being_measured():
    masks, strategy = drive(4, lambda round_: 0.0, clients=4)
    assert masks == ["client", "round", "round", "round"]
    assert strategy.rho == pytest.approx(1 / 4, abs=0.02)


def test_clients_between_the_two_keep_masks_of_their_own_where_few_meet():
    masks, strategy = drive(4, lambda round_: 0.2, clients=4, p=0.9)
    assert masks == ["client"] * 4
    # A fifth is common: 1/4 + 3/4 of that.
    assert strategy.rho == pytest.approx(0.4, abs=0.1)


def test_the_choice_follows_clients_that_drift_apart():
    masks, _ = drive(24, lambda round_: 1.0 if round_ < 4 else 0.0)
    assert masks[1] == "disjoint" and masks[-1] == "round"


def test_more_clients_than_fit_side_by_side_keep_masks_of_their_own():
    masks, _ = drive(3, lambda round_: 1.0, clients=3)
    assert masks == ["client"] * 3


def test_a_change_of_mask_is_one_line_and_rho_one_a_round(caplog: pytest.LogCaptureFixture):
    with listening(caplog), caplog.at_level("INFO", logger="flwr"):
        drive(6, lambda round_: 1.0)
    lines = {id(one): one.getMessage() for one in caplog.records}.values()
    changes = [line for line in lines if "mask 'disjoint' after" in line]
    (change,) = changes
    said = r"round 2: mask 'disjoint' after 'client': rho is about (0\.99\d|1), of 2 clients"
    assert re.fullmatch(said, change)
    measured = [line for line in lines if "rho = " in line]
    assert [line.partition(":")[0] for line in measured] == ["round 1", "round 5"]


def test_structured_pruning_is_never_given_disjoint_masks():
    masks, _ = drive(3, lambda round_: 1.0, method="structured", columns=0.6)
    assert masks == ["client"] * 3


@pytest.mark.parametrize(
    ("inner", "options", "words"),
    [
        (FedMedian, {}, "use mask='round'"),
        (FedAvg, {"replies": "own"}, "mask = 'auto' measures how much clients agree on their"),
        (FedAvg, {"method": "magnitude"}, "mask = 'auto' is for masks that are drawn"),
        (FedAvg, {"values": "sign"}, "do not say with values = 'sign'"),
        (FedAvg, {"q": "layer-q-v"}, "do not say with q = 'layer-q-v'"),
    ],
)
def test_what_cannot_be_measured_is_not_chosen_by(inner: Any, options: Any, words: str):
    with pytest.raises(ValueError, match=words):
        DarexStrategy(inner(), mask="auto", **options)


@pytest.mark.parametrize("mask", ["disjoint", "auto"])
def test_secure_aggregation_needs_one_mask_and_says_so(mask):
    secure = SecureAggregation(range=0.1, max_weight=10)
    with pytest.raises(ValueError, match=f"use mask='round' .* got mask '{mask}'"):
        DarexStrategy(FedAvg(), mask=mask, secure=secure)


def test_terms_name_a_mask_that_clients_can_draw():
    with pytest.raises(ValueError, match="terms name the mask"):
        Terms(Uplink.of("dare", 0.9, mask="auto"), 1, 0)


# --- side by side ---------------------------------------------------------------------------------


def test_equal_clients_with_masks_side_by_side_lose_nothing_of_their_change():
    clients = 10
    grid = Federation(agreeing(lambda round_: 1.0), clients)
    strategy = DarexStrategy(
        fedavg(clients=clients), p=0.9, mask="disjoint", values="fp32", downlink_values="fp32"
    )
    after = to_arrays(rounds(strategy, grid, 1, MODEL).arrays)
    change = 0.01 * np.random.default_rng([1, 99]).normal(size=MODEL["w"].shape)
    assert np.abs(after["w"] - change).max() <= 1e-6
    assert strategy.counted == clients and strategy.rho is None
    assert strategy.q == (keep_threshold(0.9) - 1) / ONE


def test_a_client_that_is_lost_takes_its_entries_with_it_and_no_others():
    options: dict[str, Any] = {"p": 0.75, "mask": "disjoint", "values": "fp32", "dense_below": 0}
    options |= {"downlink": "dense"}
    all_of_them, three = (
        run(DarexStrategy(fedavg(min_train_nodes=3), **options), broken=broken, base=MODEL)
        for broken in ((), (3,))
    )
    # Weights are partition + 1: 10 in all, 6 without the last.
    kept = three["w"] != 0
    assert np.count_nonzero(kept) == pytest.approx(0.75 * kept.size, abs=2)
    np.testing.assert_allclose(three["w"][kept], all_of_them["w"][kept] * 10 / 6, rtol=1e-5)
    assert np.count_nonzero(all_of_them["w"][~kept]) == pytest.approx(0.25 * kept.size, abs=2)


def test_clients_of_different_groups_are_named_once(caplog: pytest.LogCaptureFixture):
    strategy = DarexStrategy(
        fedavg(clients=4, fraction_train=0.5, min_train_nodes=2), p=0.5, mask="disjoint", seed=1
    )
    with listening(caplog), caplog.at_level("INFO", logger="flwr"):
        rounds(strategy, Federation(agreeing(lambda round_: 0.5), 4), 6, MODEL)
    lines = {id(one): one.getMessage() for one in caplog.records}.values()
    assert [line for line in lines if "share no entry" in line] == [
        "mask 'disjoint': slots 0 to 1, 2 to 3 and so on share no entry; this round's 2 clients "
        "are of 2 such groups, between which masks are independent"
    ]
