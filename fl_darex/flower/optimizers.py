"""What the server does with the averaged update: Flower's strategies by name, with their options.

A new one is one class and one row here, or an own class anywhere:
``server.strategy = "package.module:Class"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from fl_darex.options import Option, Scalar
from fl_darex.registry import Registry

_LR = Option(default=1.0, above=0.0, high=1e3, help="FedAvgM's and FedAdam's step size")


class Optimizer:
    """Takes the average as the new model (FedAvg, McMahan et al., 2017).

    Attributes:
        name: By which it is chosen.
        options: Its settings, keys of the section ``server``; see `fl_darex.options`.
    """

    name: ClassVar[str] = "fedavg"
    options: ClassVar[Mapping[str, Option]] = {}

    def make(self, common: Mapping[str, Any], options: Mapping[str, Scalar]) -> Strategy:
        """Return the Flower strategy.

        Args:
            common: What every strategy built on `FedAvg` takes: fractions, least numbers of nodes
                and functions for metrics, by the name of the argument.
            options: Values of `options` by name.
        """
        return FedAvg(**common)


class _Momentum(Optimizer):
    """FedAvgM (Hsu et al., 2019)."""

    name: ClassVar[str] = "fedavgm"
    options: ClassVar[Mapping[str, Option]] = {
        "lr": _LR,
        "momentum": Option(default=0.9, low=0.0, below=1.0, help="FedAvgM"),
    }

    def make(self, common: Mapping[str, Any], options: Mapping[str, Scalar]) -> Strategy:
        return FedAvgM(
            server_learning_rate=float(options["lr"]),
            server_momentum=float(options["momentum"]),
            **common,
        )


class _Adam(Optimizer):
    """FedAdam (Reddi et al., 2021)."""

    name: ClassVar[str] = "fedadam"
    options: ClassVar[Mapping[str, Option]] = {
        "lr": _LR,
        "beta_1": Option(default=0.9, low=0.0, below=1.0, help="FedAdam"),
        "beta_2": Option(default=0.99, low=0.0, below=1.0, help="FedAdam"),
        "tau": Option(default=1e-3, above=0.0, help="FedAdam"),
    }

    def make(self, common: Mapping[str, Any], options: Mapping[str, Scalar]) -> Strategy:
        return FedAdam(
            eta=float(options["lr"]),
            beta_1=float(options["beta_1"]),
            beta_2=float(options["beta_2"]),
            tau=float(options["tau"]),
            **common,
        )


OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer", Optimizer, (Optimizer(), _Momentum(), _Adam())
)
