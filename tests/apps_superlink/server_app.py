"""A server that writes down its ledgers, and what Flower itself makes of each message."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fl_darex.flower.grids import GridView
from fl_darex.flower.ledger import Ledger, LedgerGrid
from fl_darex.flower.records import to_record
from fl_darex.strategies import DarexStrategy

# The first is longer than one of Flower's chunks.
SHAPES = {"embedding": (1400, 1000), "layer.weight": (300, 300), "layer.bias": (300,), "s": ()}
app = ServerApp()


class Witness(GridView):
    """Serialises every message that passes, with Flower's own code."""

    pull_interval = 0.5  # seconds; Flower's own grid waits 3

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.seen: list[dict[str, Any]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        ids = list(self.grid.push_messages(listed))
        self.seen.extend(map(serialised, listed))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        self.seen.extend(map(serialised, replies))
        return replies


def serialised(message: Message) -> dict[str, Any]:
    """The bytes of a message: its objects, their tree, and the frame that goes ahead of them."""
    metadata = message.metadata
    objects = get_all_nested_objects(message)
    return {
        "id": metadata.message_id,
        "reply_to": metadata.reply_to_message_id,
        "node": metadata.src_node_id if metadata.reply_to_message_id else metadata.dst_node_id,
        "objects": {key: len(one.deflate()) for key, one in objects.items()},
        "tree": get_object_tree(message).ByteSize(),
        "header": message_to_proto(remove_content_from_message(message)).ByteSize(),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    rng = np.random.default_rng(0)
    model = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}
    witness = Witness(grid)
    strategy = DarexStrategy(FedAvg(min_available_nodes=2), p=0.99, downlink="dense", dense_below=0)
    rounds = int(context.run_config["rounds"])
    result = strategy.start(witness, to_record(model), num_rounds=rounds, timeout=60)
    # The same clients under a plain strategy, for the dense column.
    plain = Ledger()
    FedAvg(min_available_nodes=2, fraction_evaluate=0.0).start(
        LedgerGrid(witness, plain), result.arrays, num_rounds=1, timeout=60
    )
    # And once more with a downlink that builds on what clients keep on disk.
    again = DarexStrategy(
        FedAvg(min_available_nodes=2), p=0.99, mask="round", downlink="update", dense_below=0
    )
    again.start(witness, to_record(model), num_rounds=3, timeout=60)
    found = {
        "updated": [asdict(entry) for entry in again.ledger.entries],
        "messages": witness.seen,
        "entries": [asdict(entry) for entry in strategy.ledger.entries],
        "plain": [asdict(entry) for entry in plain.entries],
    }
    Path(str(context.run_config["out"])).write_text(json.dumps(found), encoding="utf-8")
