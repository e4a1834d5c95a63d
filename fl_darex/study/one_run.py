"""One run of a study, in the process that calls it; stopped, it goes on from its checkpoint."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fl_darex.apps import CLIENT_APP, MAKE_SERVER_APP
from fl_darex.config import RunConfig, make_config
from fl_darex.config.text import Scalar
from fl_darex.errors import ConfigError
from fl_darex.files.lock import Lock
from fl_darex.observers import files
from fl_darex.observers.run_folder import RunFolder
from fl_darex.registry import load

LOG = "log.txt"
"""Warnings of a run, in its folder."""

_PATIENCE = 30.0  # seconds


def carry_out(folder: Path, settings: Mapping[str, Scalar], keep_model: bool) -> None:
    """Do a run, or what is left of it, one client after the other.

    Args:
        folder: The run's; what a stopped run left in it is gone on with, a failed one begins anew.
        settings: Its configuration, by flat keys.
        keep_model: Whether the final model stays. Checkpoints do not.

    Raises:
        KeyboardInterrupt: If it was stopped; its summary says so.
        Exception: What it failed of, which its summary says, too; or, without a folder, why model
            or data cannot be used.
    """
    from fl_darex.simulation.in_process import simulate_in_process
    from fl_darex.training.session import session, settled

    config, made = make_config(settings), RunFolder(folder, model=keep_model)
    made.engine = "local"
    with made:
        _take(made, config)
        with _warnings_in(folder / LOG):
            config = session(settled(config)).config
            app = load(MAKE_SERVER_APP, "app")(config, [made], folder / files.CHECKPOINT)
            simulate_in_process(app, CLIENT_APP, clients=config.federation.clients)
    shutil.rmtree(folder / files.CHECKPOINT, ignore_errors=True)


def _take(made: RunFolder, config: RunConfig) -> None:
    """Take a run's folder: a new one, or one to go on in, or what a failed run left is removed."""
    _wait_for(made.path)
    status = files.read_summary(made.path).get("status")
    stopped = status in ("running", "interrupted") and files.has_checkpoint(made.path)
    if stopped and config.federation.checkpoint_every:
        made.resume(config)
        return
    if (made.path / files.CONFIG).exists():
        shutil.rmtree(made.path)
    made.reserve(config)


def _wait_for(folder: Path) -> None:
    """Wait for the worker of a study that was killed: it ends shortly after.

    Raises:
        ConfigError: If another process still has the folder.
    """
    until = time.monotonic() + _PATIENCE
    while (folder / files.ROUNDS).exists():
        lock = Lock(folder / files.ROUNDS)
        if lock.take():
            lock.give_back()
            return
        if time.monotonic() > until:
            raise ConfigError(f"the run in {str(folder)!r} still goes on, in another process")
        time.sleep(0.2)


@contextmanager
def _warnings_in(path: Path) -> Iterator[None]:
    """Write warnings to a file, which is there only if there are any."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
