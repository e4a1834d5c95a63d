"""Every published rival in federated rounds: who counts, what clients hold, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from apps import BASE
from federations import CLIENTS, fedavg, run
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from papers import NEEDS

from fl_darex.compression import METHODS
from fl_darex.compression.methods import RIVALS
from fl_darex.config import make_config
from fl_darex.secagg import SecureAggregation
from fl_darex.strategies import DarexStrategy

OPTIONS: dict[str, dict[str, Any]] = {
    "sparseloco": {"p": 0.97, "values": "lookup2"},
    "dgc": {"warmup_rounds": 1},
}
SETTINGS = {
    row.name: {"p": 0.9} | OPTIONS.get(row.name, {}) | NEEDS.get(row.name, {}) for row in RIVALS
}
"""With which each method runs."""


def strategy(method: str, **more: Any) -> DarexStrategy:
    return DarexStrategy(fedavg(), method=method, **SETTINGS[method] | {"seed": 5} | more)


def test_the_rivals_are_rows_of_the_table() -> None:
    assert {row.name: row for row in RIVALS}.items() <= METHODS.first.items()
    assert len(RIVALS) == 7


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("downlink", ["update", "server"])
def test_all_clients_count_and_hold_the_servers_model(method: str, downlink: str) -> None:
    # A client that put another model together would refuse the next delivery.
    made = strategy(method, downlink=downlink)
    found = run(made, 3)
    assert made.counted == CLIENTS
    assert any((found[name] != BASE[name]).any() for name in BASE)
    assert all(np.isfinite(array).all() for array in found.values())
    up = sum(entry.up_bytes for entry in made.ledger.entries if entry.kind == "train")
    dense = sum(entry.dense_up_bytes for entry in made.ledger.entries if entry.kind == "train")
    assert up < dense / 2


@pytest.mark.parametrize("method", SETTINGS)
def test_the_same_seed_gives_the_same_bits_in_any_order_of_arrival(method: str) -> None:
    one, other = run(strategy(method), 3), run(strategy(method), 3, reverse=True)
    assert all(one[name].tobytes() == other[name].tobytes() for name in BASE)


@pytest.mark.parametrize("method", SETTINGS)
def test_secure_aggregation_is_refused(method: str) -> None:
    secure = SecureAggregation(range=1.0, max_weight=100)
    for mask in ("client", "round"):
        with pytest.raises(ValueError, match=r"secure aggregation|set mask = 'client'"):
            strategy(method, secure=secure, mask=mask)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_configuration_names_it_with_its_options(method: str) -> None:
    keys = {f"compress.{name.replace('_', '-')}": value for name, value in SETTINGS[method].items()}
    config = make_config({"compress.method": method} | keys)
    assert config.compress.uplink(seed=0).options.keys() == METHODS[method].options.keys()
    assert make_config(config.flat()) == config


def test_a_client_that_fails_keeps_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    made = strategy("topk")
    run(made, 2, broken=(1,))
    assert made.counted == CLIENTS - 1


def test_feedback_goes_with_privacy_that_clips_on_the_server() -> None:
    inner = DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.0, 1.0, CLIENTS)
    made = DarexStrategy(inner, method="topk", p=0.9)
    run(made, 2)
    assert made.counted == CLIENTS
