"""A deployment with TLS and known SuperNodes: one is killed and comes back, one comes late.

What Flower does, as of 1.41 and 1.42: a SuperNode with a key of its own keeps its id over a
restart, one without gets a new id. A killed one counts as connected until two heartbeats are
missing, which takes a minute; until then it cannot come back under its key (the new process
ends with an error), and what it was asked waits for an answer. If it comes back between that
moment and the server's next look, three seconds at most, nobody tells the server that the answer
will never come: the round then waits for ``federation.timeout``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from superlink import ROOT, Deployment, SuperNode, wait_for

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.files.model_cache import ModelCache
from fl_darex.observers.run_folder import RunFolder
from fl_darex.strategies.server_app import make_app

from .checkout import copy_of_the_checkout
from .marks import SLOW, deployment
from .replay import Replay, exchanges, participants

SETTINGS = {
    "federation.clients": 4,
    "federation.min-clients": 3,
    "federation.rounds": 5,
    "federation.timeout": 1200.0,
    "train.local-steps": 3,
}

pytestmark = deployment(5400)


@dataclass(frozen=True)
class Finished:
    """What a run left, once every process is gone."""

    out: Path
    rows: list[dict[str, Any]]  # of clients.jsonl
    traffic: dict[str, int]
    log: str
    ids: list[int]  # of the SuperNodes, as registered
    back: SuperNode  # the killed one's second life
    homes: list[Path]


class Drama:
    """A deployment in which things happen at given points of a run."""

    def __init__(self, folder: Path) -> None:
        self.flower = Deployment(folder, secure=True)
        self.homes = [folder / f"node{n}" for n in range(4)]
        self.folder = folder
        self.run_id = ""

    @property
    def out(self) -> Path:
        return self.folder / "runs" / self.run_id

    def start(self, partition: int) -> SuperNode:
        return self.flower.start_supernode(partition, 4, home=self.homes[partition])

    def when(self, what: str, done: Any) -> Any:
        return wait_for(what, done, SLOW, self.flower.logs)

    def closed(self, round_: int) -> bool:
        path = self.out / "rounds.jsonl"
        return path.exists() and len(path.read_text("utf-8").splitlines()) >= round_

    def received(self, node: SuperNode, orders: int) -> bool:
        """Whether a SuperNode has got that many messages to train, the last one in full."""
        parts = node.log.read_text("utf-8", "replace").split("Receiving: train message")
        return len(parts) > orders and "Received successfully" in parts[orders]

    def play(self) -> Finished:
        flower = self.flower
        flower.start_superlink()
        ids = [flower.register_supernode(home) for home in self.homes]
        nodes = [self.start(partition) for partition in range(3)]
        self.run_id = flower.submit(copy_of_the_checkout(self.folder), **SETTINGS)
        # The handshake is a message to train, too.
        self.when("SuperNode 1 has work of round 2", lambda: self.received(nodes[1], 3))
        nodes[1].kill()
        self.when("what the killed one had started ends", lambda: not flower.left(self.homes[1]))
        self.when("round 2 closes without it", lambda: self.closed(2))
        # Round 3 wants three clients, so it waits for this one.
        back = self.start(1)
        self.when("SuperNode 1 has work of round 3", lambda: self.received(back, 1))
        # Round 3 cannot close while this one stands still, so the fourth is there in round 4.
        with nodes[2].frozen():
            late = self.start(3)
            self.when("SuperNode 3 is there", lambda: late.says("SuperNode ID"))
        listed = flower.finish(self.run_id, 2 * SLOW)
        return Finished(
            out=self.out,
            rows=exchanges(self.out),
            traffic=listed["network-traffic"],
            log=flower.log_of(self.run_id),
            ids=ids,
            back=back,
            homes=self.homes,
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    drama = Drama(tmp_path_factory.mktemp("restarts"))
    try:
        done = drama.play()
    finally:
        drama.flower.stop()
    assert drama.flower.left() == []
    return done


def test_the_killed_client_costs_its_reply_and_takes_part_again_and_the_late_one_joins(finished):
    assert participants(finished.rows) == {
        1: {0: True, 1: True, 2: True},
        2: {0: True, 1: False, 2: True},
        3: {0: True, 1: True, 2: True},
        4: {0: True, 1: True, 2: True, 3: True},
        5: {0: True, 1: True, 2: True, 3: True},
    }
    assert finished.log.count("does not count this round") == 1
    assert "client 1 does not count this round" in finished.log


def test_the_model_is_that_of_the_same_rounds_without_a_network(finished, tmp_path):
    grid = Replay(app, 4, participants(finished.rows))
    context = Context(grid.run.run_id, 1, {}, RecordDict(), {})
    make_app(make_config(SETTINGS), [RunFolder(tmp_path / "out")])(grid, context)
    models = [f / "model" / "model.safetensors" for f in (finished.out, tmp_path / "out")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_supernode_with_a_key_keeps_its_id_over_a_restart(finished):
    assert finished.back.says(f"SuperNode ID: {finished.ids[1]}")
    # Asked once each: the one that came back is known.
    assert Counter(row["kind"] for row in finished.rows)["handshake"] == 4


def test_nobody_is_sent_the_model_that_everybody_has_and_the_restarted_one_builds_on_its_cache(
    finished,
):
    assert not [row for row in finished.rows if row["kind"] == "lacking"]
    trained = {(r["round"], r["client"]): r for r in finished.rows if r["kind"] == "train"}
    down = {key: row["down_bytes"] for key, row in trained.items()}
    assert all(row["down_bytes"] < row["dense_down_bytes"] / 4 for row in trained.values())
    # In round 1 nobody was sent a packet, later each was sent one. Ids differ by some bytes.
    second, third = (down[round_, 0] - down[1, 0] for round_ in (2, 3))
    assert second > 5000 and third > 5000
    assert abs(down[2, 2] - down[2, 0]) < 200
    # The killed one had kept the model of round 1: it lacks the second packet and the third.
    assert abs(down[3, 1] - down[3, 0] - second) < 200
    # The late one has the packaged model, and is sent all packets; from then on one, as others.
    assert abs(down[4, 3] - down[4, 0] - second - third) < 200
    assert max(abs(down[5, client] - down[5, 0]) for client in range(4)) < 200


def test_the_ledger_and_superlinks_counters_differ_by_frames(finished):
    came = [row for row in finished.rows if not row["failed"]]
    trained = [row for row in came if row["kind"] == "train"]
    # A frame and a reply's ids weigh 242 bytes, 16 more or less (tests/test_superlink_bytes.py).
    # Answers to the handshake share objects, which SuperLink keeps once; a killed client's are
    # not there at all. Its own error reply, which no client sent, is in the ledger alone.
    inbound = finished.traffic["inbound-bytes"]
    most = sum(row["up_bytes"] for row in came) + 258 * len(came) + 1000
    assert sum(row["up_bytes"] + 226 for row in trained) <= inbound <= most
    # Down: a frame of 141, and a receipt of 112 and 66 for each of a reply's 3 to 9 objects.
    outbound = finished.traffic["outbound-bytes"]
    own = sum(row["down_bytes"] for row in finished.rows)
    least, largest = 125 + 112 + 3 * 66, 157 + 112 + 9 * 66
    assert own + least * len(came) <= outbound <= own + largest * len(finished.rows)


LOAD = """
import sys, time
began = time.perf_counter()
from fl_darex.files.model_cache import ModelCache
imported = time.perf_counter()
arrays = ModelCache(sys.argv[1]).load(bytes.fromhex(sys.argv[2]))
loaded = time.perf_counter()
from fl_darex.config import RunConfig
from fl_darex.training.session import session
ready = time.perf_counter()
session(RunConfig()).base
print(imported - began, loaded - imported, ready - loaded, time.perf_counter() - ready)
print(sum(array.nbytes for array in arrays.values()))
"""


def test_a_new_process_has_the_cached_model_at_once(finished, capsys, monkeypatch):
    monkeypatch.setenv("FL_DAREX_CACHE", str(finished.homes[1] / "cache"))
    (run,) = (finished.homes[1] / "cache" / "models").iterdir()
    version = ModelCache(run.name).held_by(1)
    assert version is not None
    done = subprocess.run(
        [sys.executable, "-c", LOAD, run.name, version.hex()],
        capture_output=True,
        text=True,
        timeout=SLOW,
        check=True,
        cwd=ROOT,
    )
    times, size = done.stdout.splitlines()[-2:]
    imports, load, torch, base = (f"{1000 * float(t):.0f} ms" for t in times.split())
    with capsys.disabled():
        print(
            f"\na new process imports the cache in {imports} and loads its {int(size):,} bytes in "
            f"{load}; torch and the task take {torch}, the base model and the data {base}"
        )
    assert int(size) > 500_000


def test_rounds_and_summary_are_there_as_after_any_run(finished):
    summary = json.loads((finished.out / "summary.json").read_text("utf-8"))
    assert (summary["status"], summary["rounds"], summary["failures"]) == ("finished", 5, 1)
    assert summary["final_metric"] > summary["initial_metric"]
