"""The ServerApp of this repository: a configuration becomes rounds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from logging import WARNING
from pathlib import Path

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fl_darex.compression.downlink import POLICIES
from fl_darex.config import RunConfig, make_config
from fl_darex.config.idle import remarks_on_idle
from fl_darex.errors import ConfigError, DarexError
from fl_darex.flower.private import is_simulated
from fl_darex.flower.records import to_record
from fl_darex.observers import Observer, RunStart
from fl_darex.observers.files import CHECKPOINT, CONFIG
from fl_darex.observers.run_folder import RunFolder
from fl_darex.training.session import session as session_for
from fl_darex.training.session import settled
from fl_darex.training.settings import settings_record

from .check import Check
from .server import Server

_PATIENCE, _POLL = 10.0, 0.1  # seconds; Flower enters its nodes while the ServerApp starts

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what ``flwr run`` configured, into ``runs/<run id>``."""
    config = make_config(context.run_config)
    for remark in idle_remarks(config):
        log(WARNING, "%s", remark)
    check_simulated_nodes(grid, config.federation.needed)
    with run_folder(config, context.run_id) as folder:
        federation = config.federation.model_copy(update={"resume": ""})  # the folder knows by now
        config = config.model_copy(update={"federation": federation})
        serve(grid, config, [folder], folder.path / CHECKPOINT)


def run_folder(config: RunConfig, run_id: int) -> RunFolder:
    """Return the folder of a run of ``flwr run``, which may have been begun by another one.

    Raises:
        ConfigError: If it cannot be had.
    """
    folder = RunFolder(Path(config.federation.resume or Path("runs") / str(run_id)).expanduser())
    folder.engine = "flwr"
    if config.federation.resume or (folder.path / CONFIG).exists():
        folder.resume(config)
        log(WARNING, "the run in %r goes on", str(folder.path))
    else:
        folder.reserve(config)
    return folder


def make_app(
    config: RunConfig, observers: Sequence[Observer], checkpoint: Path | None = None
) -> ServerApp:
    """Return a ServerApp that runs one configuration; the arguments are those of `serve`."""
    made = ServerApp()

    @made.main()
    def run(grid: Grid, context: Context) -> None:
        serve(grid, config, observers, checkpoint)

    return made


def serve(
    grid: Grid,
    config: RunConfig,
    observers: Sequence[Observer],
    checkpoint: Path | None = None,
) -> None:
    """Run all rounds of a configuration on a grid, or those that are left of them.

    Args:
        grid: Where the clients are.
        config: The run's configuration.
        observers: Who is told of the run.
        checkpoint: The folder for checkpoints, as often as the configuration says; None: none.

    Raises:
        ConfigError: If the task's model or data cannot be used, or a checkpoint cannot.
        DarexError: If no client's reply counted in any round: the model is what it was.
    """
    config = settled(config)
    server = Server(session_for(config), observers, checkpoint)
    for note in server.session.notes:
        log(WARNING, "%s", note)
    strategy = server.strategy
    # A session outlives a run, and its model is where the last run left it.
    server.session.write(server.session.base)
    strategy.start(
        grid,
        to_record(server.session.view()),
        num_rounds=config.federation.rounds,
        timeout=config.federation.timeout,
        train_config=settings_record(config, server.session.labels),
        evaluate_config=settings_record(config, server.session.labels),
        evaluate_fn=server.round_closed,
    )
    if not server.counted:
        raise DarexError(
            f"no client's reply counted in any of the {config.federation.rounds} rounds, so the "
            "model is what it was before; the log says for each reply why"
        )


def expect(config: RunConfig) -> tuple[RunStart, Check]:
    """Return what a run says before round 1, nothing measured, and what is expected of it.

    Its clients hold the model before round 1, as `serve` learns from them.

    Raises:
        ConfigError: If the task's model or data cannot be used.
    """
    config = settled(config)
    server = Server(session_for(config), [])
    held = POLICIES.choose(config.compress.downlink).versions
    strategy = server.darex_strategy(base_held=held)
    found = strategy.check(to_record(server.session.base), config.federation.sample_size)
    return server.start(None), found


def idle_remarks(config: RunConfig) -> list[str]:
    """Return a line for each setting that differs from its default and does nothing in the run.

    Flower hands on the whole configuration of an app, so what somebody set is not known.
    """
    defaults = RunConfig().flat()
    changed = [key for key, value in config.flat().items() if value != defaults[key]]
    return remarks_on_idle(config, changed, "flwr")


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
