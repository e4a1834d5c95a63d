"""A server that writes down who counted, what it needed of memory, and the model."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from fl_darex.flower.grids import GridView
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.strategies import DarexStrategy

from .client_app import SHAPES

CLIENTS = 3

app = ServerApp()


class Witness(GridView):
    """Writes down the memory that was needed once replies are there and nobody looked at them."""

    pull_interval = 0.5  # seconds; Flower's own grid waits 3

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.fetched = peak()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        self.fetched = peak()
        return replies


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def strategy() -> DarexStrategy:
    inner = FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    inner.fraction_evaluate = 0.0
    return DarexStrategy(inner, p=0.99, max_weight=1e6, dense_below=0)


def start(made: DarexStrategy, grid: Grid, rounds: int, each: Any = None) -> Result:
    rng = np.random.default_rng(0)
    model = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}
    return made.start(grid, to_record(model), num_rounds=rounds, timeout=1200, evaluate_fn=each)


@app.main()
def main(grid: Grid, context: Context) -> None:
    out, made = Path(str(context.run_config["out"])), strategy()
    witness = Witness(grid)
    peaks: list[tuple[int, int]] = []
    counted: list[int] = []

    def each(round_: int, arrays: ArrayRecord) -> None:
        peaks.append((witness.fetched, peak()))
        counted.append(made.counted)
        found = {
            "peaks": peaks,
            "counted": counted,
            "entries": [asdict(entry) for entry in made.ledger.entries],
        }
        fresh = out.with_suffix(".tmp")
        fresh.write_text(json.dumps(found), encoding="utf-8")
        fresh.replace(out)

    result = start(made, witness, int(context.run_config["rounds"]), each)
    np.savez(out.with_suffix(".npz"), **to_arrays(result.arrays))
