"""A server as its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.common import parameters_to_ndarrays
from flwr.compat.server import ServerAppComponents
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def server_fn(context: Context) -> ServerAppComponents:
    """Say what makes up the server."""
    rounds: list[Any] = []

    class Writing(FedAvg):
        """Writes each round down."""

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            """Take the average."""
            found = super().aggregate_fit(server_round, results, failures)
            model = parameters_to_ndarrays(found[0])[0].tolist() if found[0] else None
            rounds.append([len(results), len(failures), model])
            Path(str(context.run_config["out"])).write_text(json.dumps(rounds), "utf-8")
            return found

    strategy = Writing(min_fit_clients=6, min_evaluate_clients=6, min_available_clients=6)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


app = ServerApp(server_fn=server_fn)
