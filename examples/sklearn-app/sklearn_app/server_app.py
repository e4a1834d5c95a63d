"""sklearn-app: what the server does."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sklearn_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and save the final model."""
    config = context.run_config
    model = task.make_model(float(config["learning-rate"]), int(config["batch-size"]))
    strategy = FedAvg(fraction_evaluate=float(config["fraction-evaluate"]))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.get_arrays(model)),
        num_rounds=int(config["num-server-rounds"]),
    )
    np.savez(str(config["out"]), *result.arrays.to_numpy_ndarrays())
