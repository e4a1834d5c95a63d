"""Ray: start it or join it, and leave it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import Any

import ray
from flwr.common.logger import log

from fl_darex.errors import ConfigError, EngineError
from fl_darex.simulation.resources import Resources
from fl_darex.simulation.watchdog import Watchdog

_ANSWER_SECONDS = 5.0
_RAY_ADDRESS = "RAY_ADDRESS"
_watchdogs: list[Watchdog] = []


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
