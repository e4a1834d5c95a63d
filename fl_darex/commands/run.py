"""``fl-darex run``: a configuration becomes a federation and its run folder."""

from __future__ import annotations

import logging
import os
import time
from enum import StrEnum
from logging import WARNING
from pathlib import Path
from typing import Annotated, Any

import typer
from flwr.common.logger import log
from rich.console import Console

from fl_darex.commands.beforehand import check_calibration, check_folders, check_machine
from fl_darex.commands.ends import ended, shown, unheard
from fl_darex.compression.methods import METHODS
from fl_darex.config import RunConfig, load_config
from fl_darex.flower.optimizers import OPTIMIZERS
from fl_darex.observers.display import Display, summary_table
from fl_darex.observers.run_folder import RunFolder, reason_of
from fl_darex.registry import load

# Named, not imported: the library must not depend on its two halves.
SERVER = "fl_darex.strategies.server_app:make_app"
CLIENT = "fl_darex.clients.client_app:app"


class Engine(StrEnum):
    """What runs the clients: Ray, Flower's engine, or this process, one after the other."""

    ray = "ray"
    flower = "flower"
    local = "local"


def own_keys() -> str:
    """Return the keys that methods and optimizers bring along, each with its help."""
    rows: list[tuple[str, Any]] = [("compress", row) for row in METHODS.values()]
    rows += [("server", row) for row in OPTIMIZERS.values()]
    keys = {
        f"{section}.{name.replace('_', '-')} ({option.help})": None
        for section, row in rows
        for name, option in row.options.items()
    }
    return f"Settings of methods and optimizers: {'; '.join(keys)}."


def run(
    config: Annotated[Path, typer.Argument(help="TOML file, for example configs/quickstart.toml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change, for example compress.p=0.999")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder; default runs/NAME-TIME", show_default=False)
    ] = None,
    engine: Annotated[Engine, typer.Option(help="what runs the clients; local: this process")] = (
        Engine.ray
    ),
) -> None:
    """Run a federation and write its run folder."""
    console, problems = Console(), Console(stderr=True)
    folder = RunFolder(out or _unnamed(config), numbered=out is None)
    with ended(folder, console, problems):
        _run(_resolved(load_config(config, overrides or [])), folder, engine, console)


def _run(config: RunConfig, folder: RunFolder, engine: Engine, console: Console) -> None:
    _quiet()
    check_machine(config.resources)
    check_folders(config.task)
    with folder, shown(Display(console)) as display:
        folder.reserve(config)
        _execute(config, engine, [folder, display])
    _plot(folder)
    with unheard():
        console.print(summary_table(folder.summary()))
        console.print(f"run folder: {folder.path}", soft_wrap=True)


def _execute(config: RunConfig, engine: Engine, observers: list[Any]) -> None:
    from fl_darex import simulation  # what it has is loaded where it is used: Ray takes long
    from fl_darex.training.session import session

    # What is wrong with model or data comes to light before Ray starts.
    check_calibration(session(config))
    server_app, clients = load(SERVER, "app")(config, observers), config.federation.clients
    if engine is Engine.local:
        # Server and clients now share this process's session and its one model. They never need it
        # at once, for there is one thread, and each writes all exchanged tensors before it reads,
        # trains, evaluates or saves; the others are frozen. Copies of the first values
        # (`pretrained`, `base`) and the examples are never written to.
        simulation.simulate_in_process(server_app, CLIENT, clients=clients)
        return
    resources = simulation.Resources(**config.resources.model_dump())
    if engine is Engine.ray:
        simulation.simulate(server_app, CLIENT, clients=clients, resources=resources)
        return
    from fl_darex.simulation.flower_engine import simulate_with_flower

    simulate_with_flower(server_app, load(CLIENT, "app"), clients=clients, resources=resources)


def _plot(folder: RunFolder) -> None:
    try:
        from fl_darex.study.plots import plot_run
    except ImportError:
        return  # matplotlib is an extra
    try:
        plot_run(folder.path)
    except Exception as error:  # a picture is no reason to call a run failed
        log(WARNING, "no plots in %r: %s", str(folder.path), reason_of(error))


def _unnamed(config: Path) -> Path:
    return Path("runs") / f"{config.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _resolved(config: RunConfig) -> RunConfig:
    """Make relative paths absolute: workers and nodes run in other folders."""
    task = config.task
    paths = {
        key: str(Path(value).expanduser().resolve())
        for key, value in (("model", task.model), ("dataset", task.dataset))
        if value and Path(value).expanduser().exists()
    }
    return config.model_copy(update={"task": task.model_copy(update=paths)})


def _quiet() -> None:
    """Leave the terminal to our own display; warnings of Flower and of our own still show."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
