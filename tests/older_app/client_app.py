"""A client as a class."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class Adder(NumPyClient):
    """Adds its partition to the model."""

    def __init__(self, partition: int) -> None:
        self.partition = partition

    def get_parameters(self, config: Any) -> list[np.ndarray]:
        """Return the first model."""
        return [np.zeros(3, np.float32)]

    def fit(self, parameters: Any, config: Any) -> Any:
        """Train."""
        return [parameters[0] + np.float32(self.partition)], self.partition + 1, {}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        """Measure."""
        return float(parameters[0].sum()), 1, {}


def client_fn(context: Context) -> Any:
    """Make a client."""
    return Adder(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)
