"""Run a ServerApp and a ClientApp on one machine or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import ServerApp

from fl_darex.simulation.cluster import Resources
from fl_darex.simulation.ray_grid import RayGrid


def simulate(
    server_app: ServerApp,
    client_app: ClientAppCallable | str,
    *,
    clients: int,
    resources: Resources | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> Context:
    """Run a whole federation with Ray and return the server's context.

    Args:
        server_app: Any Flower ServerApp.
        client_app: Any Flower ClientApp, or ``"module:attribute"``.
        clients: Number of simulated nodes; node i has ``node_config["partition-id"] == i``.
        resources: What one client may use; default one core, no GPU.
        run_config: What both apps see as ``context.run_config``.

    Raises:
        ConfigError: If not even one client fits into the cluster.
    """
    with RayGrid(client_app, clients, resources, run_config) as grid:
        return grid.serve(server_app)
