"""The same apps on Flower's own simulation engine, for comparison.

Flower's engine stops the Ray of the whole process when it ends, so use it where nothing else
needs Ray; `fl-darex run --engine flower` does.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl_darex.errors import ConfigError, EngineError
from fl_darex.simulation.cluster import connect, disconnect
from fl_darex.simulation.resources import Resources
from fl_darex.simulation.room import capacity, machines


def simulate_with_flower(
    server_app: ServerApp, client_app: ClientApp, *, clients: int, resources: Resources
) -> None:
    """Run a ServerApp and a ClientApp with ``flwr.simulation.run_simulation``.

    Args:
        server_app: Any Flower ServerApp.
        client_app: Any Flower ClientApp.
        clients: Number of simulated nodes.
        resources: What one client may use; Flower wants whole cores, so they are rounded up,
            and takes no limit on actors and no cluster address.

    Raises:
        ConfigError: If not even one client fits, or it needs what Flower's engine does not know.
        EngineError: If Flower's engine fails; the server app's own error where there is one.
    """
    # Flower reports how often its entry is used over the network; a simulation needs none.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from flwr.simulation import run_simulation

    if resources.meters or resources.custom:
        raise ConfigError(
            "resources.num-gpus = 'auto' and custom resources are for the engine 'ray'; Flower's "
            "takes numbers of cores and GPUs"
        )
    owns_ray = connect(resources)
    capacity(machines(), resources.fixed)  # a clear error before Flower's own
    client: Any = {"num_cpus": math.ceil(resources.num_cpus), "num_gpus": resources.num_gpus}
    logger, quiet = logging.getLogger("flwr"), _NoDeprecation()
    logger.addFilter(quiet)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run_simulation(
                server_app,
                client_app,
                num_supernodes=clients,
                backend_config={"client_resources": client},
            )
    except RuntimeError as error:
        cause = error.__cause__ or error
        raise EngineError(f"Flower's engine failed: {cause}") from error
    finally:
        logger.removeFilter(quiet)
        if owns_ray:
            disconnect()


class _NoDeprecation(logging.Filter):
    """Drops Flower's advice to use ``flwr run``: this entry was chosen on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "DEPRECATED FEATURE" not in str(record.msg)
