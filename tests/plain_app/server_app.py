"""The server: queries, push and pull, errors and strategies; writes what it saw to ``out``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    Krum,
)
from task import MODEL

app = ServerApp()
seen: dict[str, Any] = {}


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:
    """Write what was seen, also where it came to an end before its time."""
    seen.clear()
    seen["run_config"] = {k: v for k, v in context.run_config.items() if k != "out"}
    yield
    seen["ended"] = True
    if out := str(context.run_config["out"]):
        Path(out).write_text(json.dumps(seen), "utf-8")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do everything once."""
    nodes = wait_for(grid)
    first = ask(grid, nodes, "query")
    partition = {r.metadata.src_node_id: r.content["seen"]["node.partition-id"] for r in first}
    seen["nodes"] = len(nodes)
    seen["first"] = by(partition, first, told)
    seen["failed"] = by(partition, ask(grid, nodes, "query.fail"), failed)
    seen["twice"] = by(
        partition, pushed(grid, partition), lambda reply: reply.content["number"]["n"]
    )
    seen["unknown"] = by(partition, ask(grid, nodes, "query.nobody"), failed)
    seen["then"] = by(partition, ask(grid, nodes, "query"), told)
    seen["strategies"] = {name: run(grid, context, name) for name in strategies()}
    seen["last"] = by(partition, ask(grid, nodes, "query"), told)


def wait_for(grid: Grid) -> list[int]:
    """Flower's engine adds its nodes one by one."""
    while True:
        before = len(list(grid.get_node_ids()))
        time.sleep(0.2)
        nodes = list(grid.get_node_ids())
        if nodes and len(nodes) == before:
            return nodes


def ask(grid: Grid, nodes: list[int], kind: str) -> list[Message]:
    """Ask all nodes and wait."""
    return list(grid.send_and_receive([Message(RecordDict(), n, kind) for n in nodes], timeout=120))


def pushed(grid: Grid, numbers: dict[int, Any]) -> list[Message]:
    """Push a number to each node and pull the replies, as asynchronous apps do."""
    contents = {node: RecordDict({"number": MetricRecord({"n": n})}) for node, n in numbers.items()}
    waiting = set(
        grid.push_messages([Message(c, node, "evaluate.twice") for node, c in contents.items()])
    )
    replies: list[Message] = []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
        time.sleep(0.01)
    return replies


def by(partition: dict[int, Any], replies: list[Message], what: Any) -> list[Any]:
    """Say something of each reply, in the order of partitions."""
    return [what(r) for r in sorted(replies, key=lambda r: partition[r.metadata.src_node_id])]


def told(reply: Message) -> dict[str, Any]:
    """What a client said of itself, and what its mods left."""
    marks = reply.content["marked"]["by"]
    return {**reply.content["seen"], "marks": marks, "inner": "inner" in reply.content}


def failed(reply: Message) -> Any:
    """The code of a client's error, and whether it says the client's own words."""
    if not reply.has_error():
        return None
    return [reply.error.code, "no data here" in (reply.error.reason or "")]


def strategies() -> dict[str, Any]:
    """Strategies of Flower, by name, and the mod that each needs."""
    few: dict[str, Any] = {"min_train_nodes": 5, "min_available_nodes": 5}
    return {
        "FedAvg": (FedAvg(**few), ""),
        "FedAdam": (FedAdam(eta=0.1, **few), ""),
        "Krum": (Krum(num_malicious_nodes=1, **few), ""),
        "server clips": (
            DifferentialPrivacyServerSideFixedClipping(FedAvg(**few), 0.1, 0.5, 5),
            "",
        ),
        "client clips": (
            DifferentialPrivacyClientSideFixedClipping(FedAvg(**few), 0.1, 0.5, 5),
            "fixed",
        ),
        "adaptive": (
            DifferentialPrivacyClientSideAdaptiveClipping(
                FedAvg(**few), 0.1, 5, clipped_count_stddev=1.0
            ),
            "adaptive",
        ),
    }


def run(grid: Grid, context: Context, name: str) -> dict[str, Any]:
    """Run a strategy and say what came out."""
    strategy, mod = strategies()[name]
    np.random.seed(0)  # of the noise
    result = strategy.start(
        grid,
        ArrayRecord({key: Array(value) for key, value in MODEL.items()}),
        num_rounds=int(context.run_config["rounds"]),
        timeout=120,
        train_config=ConfigRecord({"mod": mod}),
    )
    return {
        "model": [a.ravel().tolist() for a in result.arrays.to_numpy_ndarrays()],
        "train": [dict(m) for m in result.train_metrics_clientapp.values()],
        "evaluate": [dict(m) for m in result.evaluate_metrics_clientapp.values()],
    }
