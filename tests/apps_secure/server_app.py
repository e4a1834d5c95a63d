"""A server that writes down what it saw of each client, its ledger and the model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from fl_darex.flower.grids import GridView
from fl_darex.flower.records import SEALED_STYPE, packet_of, to_arrays, to_record
from fl_darex.strategies import DarexStrategy, SecureAggregation

from .client_app import model

CLIENTS = 4
ROUNDS = 2

app = ServerApp()


class Witness(GridView):
    """Looks at every reply that holds arrays or metrics."""

    pull_interval = 0.5  # seconds; Flower's own grid waits 3

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.masked: list[bool] = []
        self.metrics: list[dict[str, Any]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            if reply.has_content():
                records = reply.content.array_records.values()
                self.masked += (packet_of(one, SEALED_STYPE) is not None for one in records)
                self.metrics += map(dict, reply.content.metric_records.values())
        return replies


def start(grid: Grid) -> tuple[DarexStrategy, Result]:
    inner = FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
    made = DarexStrategy(
        inner,
        p=0.99,
        mask="round",
        base_held=True,
        secure=SecureAggregation(range=0.06, max_weight=8, metrics=("loss",)),
        dense_below=0,
    )
    return made, made.start(grid, to_record(model()), num_rounds=ROUNDS, timeout=1200)


@app.main()
def main(grid: Grid, context: Context) -> None:
    out, witness = Path(str(context.run_config["out"])), Witness(grid)
    made, result = start(witness)
    np.savez(out.with_suffix(".npz"), **to_arrays(result.arrays))
    found = {
        "entries": [asdict(entry) for entry in made.ledger.entries],
        "masked": witness.masked,
        "metrics": witness.metrics,
        "losses": [metrics["loss"] for metrics in result.train_metrics_clientapp.values()],
    }
    out.write_text(json.dumps(found), encoding="utf-8")
