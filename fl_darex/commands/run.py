"""``fl-darex run``: a configuration becomes a federation and its run folder."""

from __future__ import annotations

import time
from contextlib import ExitStack
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fl_darex.apps import CLIENT_APP, MAKE_SERVER_APP
from fl_darex.commands.beforehand import check_calibration, check_folders, check_machine
from fl_darex.commands.ends import ended, shown, unheard
from fl_darex.commands.going_on import is_over, stopped_run
from fl_darex.commands.loading import load_session
from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.commands.settings import (
    Engine,
    Overrides,
    quiet,
    read_settings,
)
from fl_darex.compression.methods import METHODS
from fl_darex.config import RunConfig
from fl_darex.config.paths import resolved
from fl_darex.errors import ConfigError
from fl_darex.flower.optimizers import OPTIMIZERS
from fl_darex.observers.display import Display
from fl_darex.observers.files import CHECKPOINT
from fl_darex.observers.run_folder import RunFolder, reason_of
from fl_darex.observers.totals import summary_table
from fl_darex.observers.trackers import check_trackers, tracker
from fl_darex.registry import load
from fl_darex.study.sweep import has_lists, sweep

if TYPE_CHECKING:
    from fl_darex.simulation.resources import Classes


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
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", hidden=True)] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder; default runs/NAME-TIME", show_default=False)
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="what runs clients; local: this process; default ray", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="run folder of a stopped run that is to go on, in place of CONFIG",
            show_default=False,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="record the run in tensorboard, mlflow, wandb or trackio too; may be repeated",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a federation and write its run folder; with KEY=A,B,C one for each value."""
    console = plain_console()
    if config is not None and has_lists(overrides or []):
        _sweep(config, overrides or [], out, engine or Engine.ray, [*(track or [])], resume)
        return
    words = [*([] if config is None else [str(config)]), *(overrides or [])]
    folder = RunFolder(resume or out or _unnamed(config), numbered=not (resume or out))
    with ended(folder, console):
        if resume is not None:
            settings, engine, remarks = stopped_run(resume, words, engine, out)
            if is_over(resume, settings):
                say(console, f"the run in {str(resume)!r} has finished; nothing is left to do")
                return
            folder.resume(settings)
        elif config is None:
            raise ConfigError("name a CONFIG.toml, or --resume with a run folder")
        else:
            engine = engine or Engine.ray
            settings, remarks = read_settings(config, overrides or [], engine)
        for remark in remarks:
            say(console, remark, "note:", "yellow")
        trackers = list(dict.fromkeys(track or []))
        check_trackers(trackers)
        _run(resolved(settings), folder, engine, trackers, console, resume is not None)


def _sweep(
    config: Path,
    overrides: list[str],
    out: Path | None,
    engine: Engine,
    track: list[str],
    resume: Path | None,
) -> None:
    """Run all combinations of some settings as a study."""
    from fl_darex.commands.study import run_study

    console = plain_console()
    with told_in_one_line():
        if resume is not None or track or engine is Engine.flower:
            raise ConfigError(
                "several values of a setting make a study, which takes no --resume (the same "
                "command with --out goes on), no --track and no --engine flower"
            )
        found = sweep(config, overrides)
    run_study(found, out or _unnamed(config), engine, console, keep_models=True)


def _run(
    config: RunConfig,
    folder: RunFolder,
    engine: Engine,
    track: list[str],
    console: Console,
    resumed: bool,
) -> None:
    quiet()
    check_machine(config.resources)
    check_folders(config.task)
    with folder, shown(Display(console)) as display, ExitStack() as stack:
        folder.engine = engine.value
        if not resumed:
            folder.reserve(config)
        trackers = [stack.enter_context(tracker(name, folder.path)) for name in track]
        # What is wrong with model or data comes to light before Ray starts.
        session = load_session(config, display.phases)
        check_calibration(session)
        checkpoints = folder.path / CHECKPOINT
        _execute(session.config, engine, [folder, display, *trackers], checkpoints, display)
    _plot(folder)
    with unheard():
        console.print(summary_table(folder.summary()))
        say(console, f"run folder: {folder.path}")


def _execute(
    config: RunConfig,
    engine: Engine,
    observers: list[Any],
    checkpoints: Path,
    display: Display,
) -> None:
    from fl_darex import simulation  # what it has is loaded where it is used: Ray takes long

    app = load(MAKE_SERVER_APP, "app")(config, observers, checkpoints)
    server_app, clients = _announced(app, config, display), config.federation.clients
    if engine is Engine.local:
        # Server and clients now share this process's session and its one model. They never need it
        # at once, for there is one thread, and each writes all exchanged tensors before it reads,
        # trains, evaluates or saves; the others are frozen. Copies of the first values
        # (`pretrained`, `base`) and the examples are never written to.
        simulation.simulate_in_process(server_app, CLIENT_APP, clients=clients)
        return
    display.phases.begin("starting Ray")  # Flower's engine runs on it, too
    resources = simulation.Resources(**config.resources.for_all)
    if engine is Engine.ray:
        classes: Classes = {
            tuple(partitions): simulation.Resources(**own)
            for partitions, own in config.resources.by_class
        }
        simulation.simulate(
            server_app, CLIENT_APP, clients=clients, resources=resources, classes=classes
        )
        return
    from fl_darex.simulation.flower_engine import simulate_with_flower

    simulate_with_flower(server_app, load(CLIENT_APP, "app"), clients=clients, resources=resources)


def _announced(app: ServerApp, config: RunConfig, display: Display) -> ServerApp:
    """Return a ServerApp that says when the engine has started, and what comes then."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        display.watch(grid)
        display.phases.end()
        if config.federation.evaluate == "server":
            display.phases.begin("measuring the first model")
        app(grid, context)

    return made


def _plot(folder: RunFolder) -> None:
    try:
        from fl_darex.study.plots import plot_run
    except ImportError:
        return  # matplotlib is an extra
    try:
        plot_run(folder.path)
    except Exception as error:  # a picture is no reason to call a run failed
        log(WARNING, "no plots in %r: %s", str(folder.path), reason_of(error))


def _unnamed(config: Path | None) -> Path:
    return Path("runs") / f"{config.stem if config else 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
