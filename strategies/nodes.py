"""Whether a simulation has the nodes that a run wants: it never gets more of them."""

from __future__ import annotations

import time

from flwr.serverapp import Grid

from fl_darex.errors import ConfigError
from fl_darex.flower.private import is_simulated

_PATIENCE, _POLL = 10.0, 0.1  # seconds; Flower enters its nodes while the ServerApp starts


def check_simulated_nodes(grid: Grid, clients: int) -> None:
    """Refuse a simulation of ``flwr run`` with fewer nodes than ``federation.clients``.

    A deployment may be joined later, and Flower's strategies log that they wait.

    Raises:
        ConfigError: If there are too few.
    """
    end = time.monotonic() + _PATIENCE
    while is_simulated(grid) and (nodes := len(list(grid.get_node_ids()))) < clients:
        if time.monotonic() > end:
            raise ConfigError(
                f"federation.clients = {clients}, but this simulation has {nodes} nodes; add "
                f"--federation-config 'num-supernodes={clients}' to flwr run, or --run-config "
                f"'federation.clients={nodes}'"
            )
        time.sleep(_POLL)
