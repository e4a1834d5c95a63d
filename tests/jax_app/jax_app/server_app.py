"""A server that averages lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg and write the line down."""
    strategy = FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0, min_available_nodes=3)
    start = ArrayRecord({"line": Array(np.zeros(2, np.float32))})
    result = strategy.start(grid, start, num_rounds=20, timeout=200)
    line = result.arrays["line"].numpy().tolist()
    Path(str(context.run_config["out"])).write_text(json.dumps(line), "utf-8")
