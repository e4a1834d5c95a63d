"""Ray: start it or join it, and see how many workers fit."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import ray
from flwr.common.logger import log

from fl_darex import checks
from fl_darex.errors import ConfigError, EngineError
from fl_darex.simulation.watchdog import Watchdog

_ANSWER_SECONDS = 5.0
_RAY_ADDRESS = "RAY_ADDRESS"
_watchdogs: list[Watchdog] = []


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one simulated client may use.

    Attributes:
        num_cpus: Cores per client, may be a fraction.
        num_gpus: GPUs per client, may be a fraction; Ray does not cap memory by it.
        actors: Worker processes at most; 0 = as many as fit.
        ray_address: An existing Ray cluster, HOST:PORT, or ``auto``: the one that ``RAY_ADDRESS``
            names or that runs here; empty = use the one of this process or start one.

    Raises:
        TypeError: If one is of another kind, such as a text in a number's place.
        ValueError: If one is outside its range.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    actors: int = 0
    ray_address: str = ""

    def __post_init__(self) -> None:
        checks.positive("num_cpus", self.num_cpus)
        wanted = "a finite number from 0 on"
        checks.real("num_gpus", self.num_gpus, wanted, lambda number: 0 <= number < math.inf)
        checks.whole("actors", self.actors, "a whole number from 0 on", lambda n: n >= 0)
        checks.instance("ray_address", self.ray_address, str, "text, HOST:PORT")


def connect(resources: Resources) -> bool:
    """Connect to Ray and return whether this call did it, so that the caller disconnects.

    Raises:
        ConfigError: If nobody answers at the cluster's address.
        EngineError: If Ray cannot be started.
    """
    if ray.is_initialized():
        return False
    _check_address(resources.ray_address)
    # Workers inherit the environment but not this process's sys.path.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    _say_what_is_ignored(resources.ray_address)
    try:
        with warnings.catch_warnings(), _own_sigterm():
            warnings.simplefilter("ignore", FutureWarning)
            context: Any = ray.init(
                # Without an address, Ray joins whatever cluster it finds, somebody else's too.
                address=resources.ray_address or "local",
                include_dashboard=None if resources.ray_address else False,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:
        where = resources.ray_address or "a local Ray"
        raise EngineError(f"cannot connect to {where}: {error}") from error
    if not resources.ray_address:
        _watchdogs.append(Watchdog(context.address_info["session_dir"]))
    return True


def disconnect() -> None:
    """Leave Ray, and stop it where `connect` started it."""
    ray.shutdown()
    while _watchdogs:
        _watchdogs.pop().goodbye()


def _say_what_is_ignored(address: str) -> None:
    if not address and (found := os.environ.get(_RAY_ADDRESS)):
        log(
            WARNING,
            "%s = %r is not used: a Ray of this process's own is started; resources.ray-address = "
            "'auto' joins that cluster",
            _RAY_ADDRESS,
            found,
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this program does at SIGTERM, if it is anything: Ray would exit, in its place."""
    own = signal.getsignal(signal.SIGTERM)
    if own in (signal.SIG_DFL, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # it came while Ray's own handler was there
        raise KeyboardInterrupt("SIGTERM") from None
    finally:
        signal.signal(signal.SIGTERM, own)


def _check_address(address: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for many minutes."""
    if address in ("", "auto", "local"):
        return  # Ray's own words
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"resources.ray-address = {address!r}: nobody answers there ({error}); "
            "give HOST:PORT of a running Ray cluster, or leave it empty to start one"
        ) from None


def capacity(resources: Resources) -> int:
    """Return how many workers of this size the cluster can hold at once, node by node.

    Raises:
        ConfigError: If not even one fits.
    """
    total, cpus, gpus = 0, 0.0, 0.0
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        free = node["Resources"] if node["Alive"] else {}
        node_cpus, node_gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
        fits = int(node_cpus / resources.num_cpus + 1e-9)
        if resources.num_gpus:
            fits = min(fits, int(node_gpus / resources.num_gpus + 1e-9))
        total, cpus, gpus = total + fits, max(cpus, node_cpus), max(gpus, node_gpus)
    if total == 0 and resources.num_gpus > gpus:
        raise ConfigError(
            f"resources.num-gpus = {resources.num_gpus:g}, but the largest node has "
            f"{gpus:g} GPUs; allowed here: 0 to {gpus:g}"
        )
    if total == 0:
        raise ConfigError(
            f"resources.num-cpus = {resources.num_cpus:g}, but the largest node has "
            f"{cpus:g} cores; allowed here: up to {cpus:g}"
        )
    return min(total, resources.actors) if resources.actors else total
