"""A deployment in which one client misbehaves in every round, and an honest one is killed.

The honest clients' model comes out, bit for bit, and the server says who did not count and why.
SuperNodes have no keys here, so the killed one comes back under a new id.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps_hostile.client_app import ACTS, TIMES, app
from apps_hostile.server_app import CLIENTS, start, strategy
from flower_project import project_of
from superlink import Deployment, SuperNode, wait_for

from fl_darex.flower.records import to_arrays

from .marks import SLOW, deployment
from .replay import Replay

HOSTILE = 2
ROUNDS = len(ACTS)

pytestmark = deployment(5400)


@dataclass(frozen=True)
class Finished:
    """What the run left, once every process is gone."""

    entries: list[dict[str, Any]]  # of the ledger
    # Peaks of the ServerApp's memory in bytes: when a round's replies had been fetched, and when
    # the round was over. The first are those before round 1.
    peaks: list[tuple[int, int]]
    counted: list[int]  # replies in each round's average, as `peaks`
    model: dict[str, np.ndarray]
    log: str
    ids: tuple[str, str]  # of the killed SuperNode in its two lives


def id_of(node: SuperNode) -> str:
    found = re.search(r"SuperNode ID: (\d+)", node.log.read_text("utf-8", "replace"))
    return found[1] if found else ""


def play(flower: Deployment, folder: Path) -> Finished:
    out = folder / "found.json"
    homes = [folder / f"node{n}" for n in range(CLIENTS)]
    for home in homes:
        home.mkdir()

    def supernode(partition: int, **more: Any) -> SuperNode:
        return flower.start_supernode(partition, CLIENTS, home=homes[partition], **more)

    flower.start_superlink()
    honest = [supernode(partition) for partition in range(CLIENTS - 1)]
    supernode(HOSTILE, hostile=True)
    source = project_of("apps_hostile", folder)
    run_id = flower.submit(source, rounds=ROUNDS, out=str(out))
    # In the last round but one: the hostile client fails, and an honest one is killed.
    orders = "Receiving: train message"  # the handshake is one, too
    wait_for(
        "an honest client has work of the last round but one",
        lambda: (
            honest[1].log.read_text("utf-8", "replace").count(orders) == ROUNDS
        ),  # one of them is the handshake
        ROUNDS * SLOW / 3,
        flower.logs,
    )
    honest[1].kill()
    wait_for("what it started ends", lambda: not flower.left(homes[1]), SLOW, flower.logs)
    back = supernode(1)
    flower.finish(run_id, SLOW)
    found = json.loads(out.read_text("utf-8"))
    with np.load(out.with_suffix(".npz")) as file:
        model = dict(file)
    return Finished(
        entries=found["entries"],
        peaks=found["peaks"],
        counted=found["counted"],
        model=model,
        log=flower.log_of(run_id),
        ids=(id_of(honest[1]), id_of(back)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    flower = Deployment(folder)
    try:
        done = play(flower, folder)
    finally:
        flower.stop()
    assert flower.left() == []
    return done


def test_every_round_closes_with_the_honest_clients_alone(finished):
    assert finished.counted == [0] + [2] * (ROUNDS - 2) + [1, 2]


def test_the_model_is_that_of_the_honest_clients_alone(finished):
    lost = {0: True, 1: False, HOSTILE: False}
    rounds = {r: lost | {1: r != ROUNDS - 1} for r in range(1, ROUNDS + 1)}
    expected = to_arrays(start(strategy(), Replay(app, CLIENTS, rounds), ROUNDS).arrays)
    assert set(expected) == set(finished.model)
    for name, array in expected.items():
        np.testing.assert_array_equal(finished.model[name], array, strict=True)


def test_the_servers_log_says_who_did_not_count_and_why(finished):
    lines = re.findall(r"client (\S+) does not count this round: (.*)", finished.log)
    hostile = [reason for client, reason in lines if client == str(HOSTILE)]
    assert len(hostile) == ROUNDS
    for reason, (_, word) in zip(hostile, ACTS, strict=True):
        assert word in reason
    assert [client for client, _ in lines if client != str(HOSTILE)] == ["1"]


def test_a_supernode_without_a_key_comes_back_under_a_new_id_and_has_its_partition_again(finished):
    assert finished.ids[0] and finished.ids[1] and finished.ids[0] != finished.ids[1]
    assert "partition 1: a node took it over from one that is gone" in finished.log
    last = [entry for entry in finished.entries if entry["round"] == ROUNDS]
    assert [entry["client"] for entry in last] == [0, 1, HOSTILE]
    # Its cache is still there: a packet for each round that it missed, not the whole model.
    assert last[1]["down_bytes"] < last[1]["dense_down_bytes"] / 4


def test_the_server_needs_no_memory_for_a_huge_reply_beyond_what_flower_fetches_it_with(
    finished, capsys
):
    largest = max(entry["up_bytes"] for entry in finished.entries)
    usual = max(entry["up_bytes"] for entry in finished.entries if entry["round"] == 2)
    assert largest > 0.9 * TIMES * (usual - 2000) > 40e6
    # Flower holds a reply three to five times before anybody can look at it: what it received, the
    # chunks made of that, the array made of those, and what the threads that fetch it leave behind.
    (_, before), *later = finished.peaks
    fetching = max(fetched for fetched, _ in later) - before
    own = max(after - fetched for fetched, after in later)
    with capsys.disabled():
        print(
            f"\na reply of {largest:,} bytes moved the server's peak of memory by {fetching:,} "
            f"when Flower fetched it; all that came after moved it by {own:,} at most"
        )
    assert fetching < 8 * largest
    # The packet is refused by its length alone. What else a round needs is a few models of 1.8 MB,
    # and the interpreter's own growth.
    assert own < 64e6
