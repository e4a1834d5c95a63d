"""Secure aggregation between known SuperNodes that hold the model, with TLS; one drops out.

The model is, bit for bit, that of the same rounds without a network, and the server saw no update.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from apps_secure.client_app import LOST, SHAPES, app
from apps_secure.server_app import CLIENTS, ROUNDS, start
from federations import Federation
from flower_project import project_of
from secure_clients import Lossy
from superlink import Deployment

from fl_darex.flower.records import to_arrays
from fl_darex.secagg.messages import MASKED

from .marks import SLOW, deployment

DIES = 3
OTHER = 1  # holds another model than the others
DENSE = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())

pytestmark = deployment(3600)


@dataclass(frozen=True)
class Finished:
    """What the run left, once every process is gone."""

    entries: list[dict[str, Any]]  # of the ledger
    masked: list[bool]  # of each reply with arrays: whether they are a masked packet
    metrics: list[dict[str, Any]]  # of each reply that has some
    losses: list[float]  # the strategy's, by round
    model: dict[str, np.ndarray]
    traffic: dict[str, int]
    log: str

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    flower, out = Deployment(folder, secure=True), folder / "found.json"
    homes = [folder / f"node{partition}" for partition in range(CLIENTS)]
    try:
        flower.start_superlink()
        for partition, home in enumerate(homes):
            flower.register_supernode(home)
            config = {"dies": partition == DIES, "other": partition == OTHER}
            flower.start_supernode(partition, CLIENTS, home=home, **config)
        run_id = flower.submit(project_of("apps_secure", folder), out=str(out))
        listed = flower.finish(run_id, SLOW)
        log = flower.log_of(run_id)
    finally:
        flower.stop()
    assert flower.left() == []
    with np.load(out.with_suffix(".npz")) as file:
        model = dict(file)
    found = json.loads(out.read_text("utf-8"))
    return Finished(**found, model=model, traffic=listed["network-traffic"], log=log)


def test_the_model_is_that_of_the_same_rounds_without_a_network(finished):
    grid = Federation(Lossy(app, [(DIES, MASKED)], rounds=[LOST]), CLIENTS)
    strategy, result = start(grid)
    assert strategy.counted == CLIENTS
    expected = to_arrays(result.arrays)
    assert set(expected) == set(finished.model)
    for name, array in expected.items():
        np.testing.assert_array_equal(finished.model[name], array, strict=True)


def test_the_server_saw_masked_packets_and_the_metric_that_it_asked_for(finished):
    assert finished.masked == [True] * (CLIENTS * ROUNDS - 1)
    assert len(finished.metrics) == CLIENTS * ROUNDS - 1
    assert {tuple(metrics) for metrics in finished.metrics} == {("loss",)}
    # A plain mean: of 0, 1, 2 where the last is missing, and of 0, 1, 2, 3.
    means = [1.0, 1.5]
    assert finished.losses == pytest.approx([m + r / 16 for r, m in enumerate(means, 1)])


def test_the_client_that_drops_out_costs_its_update_and_takes_part_again(finished):
    lost = [row for row in finished.rows("train") if row["failed"]]
    assert [(row["round"], row["client"]) for row in lost] == [(LOST, DIES)]
    assert finished.log.count("does not count this round") == 1
    last = [row["client"] for row in finished.rows("train") if row["round"] == ROUNDS]
    assert sorted(last) == list(range(CLIENTS))
    # Keys, shares and unmasking; who dropped out is not asked to unmask.
    short = Counter(row["round"] for row in finished.rows("secure"))
    assert short == {r: 3 * CLIENTS - (r == LOST) for r in range(1, ROUNDS + 1)}


def test_the_model_is_sent_to_the_client_alone_that_says_it_holds_another(finished):
    assert not finished.rows("lacking")
    sent = {(row["round"], row["client"]): row["down_bytes"] for row in finished.rows("train")}
    assert sent.pop((1, OTHER)) > DENSE
    assert max(sent.values()) < DENSE / 4


def test_the_ledger_and_superlinks_counters_differ_by_frames(finished):
    came = [row for row in finished.entries if not row["failed"]]
    own = sum(row["up_bytes"] for row in came)
    # A frame and a reply's ids: tests/test_superlink_bytes.py.
    inbound = finished.traffic["inbound-bytes"]
    assert own + 200 * len(came) <= inbound <= own + 258 * len(finished.entries) + 1000
    outbound = finished.traffic["outbound-bytes"]
    own = sum(row["down_bytes"] for row in finished.entries)
    assert own <= outbound <= own + (157 + 112 + 9 * 66) * len(finished.entries)
