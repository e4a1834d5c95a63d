"""``fl-darex check``: what a run is going to be, without running it."""

from __future__ import annotations

from typing import Annotated

import typer

from fl_darex.commands.expectation import Expectation
from fl_darex.commands.loading import load_session
from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.commands.settings import (
    ConfigPath,
    Engine,
    Overrides,
    quiet,
    read_settings,
)
from fl_darex.config import RunConfig
from fl_darex.config.paths import resolved
from fl_darex.observers.header import header
from fl_darex.observers.phases import Phases
from fl_darex.registry import load

# Named, not imported: the library must not depend on its two halves.
EXPECT = "fl_darex.strategies.server_app:expect"


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    engine: Annotated[
        Engine, typer.Option(help="that the run is meant for; default ray", show_default=False)
    ] = Engine.ray,
) -> None:
    """Say what a run is going to be, and run nothing."""
    with told_in_one_line():
        settings, remarks = read_settings(config, overrides or [], engine)
        _tell(resolved(settings), remarks)


def _tell(config: RunConfig, remarks: list[str]) -> None:
    quiet()
    console = plain_console()
    phases = Phases(console)
    try:
        session = load_session(config, phases)
        config = session.config
        start, expected = load(EXPECT, "what is expected")(config)
    finally:
        phases.stop()
    from fl_darex.commands.shares import Shares  # numpy and the task's rows, loaded by now

    shares = Shares.of(session.task, session.labels)
    console.print(header(start))
    console.print()
    console.print(shares.table())
    console.print()
    say(console, shares.steps(config))
    console.print()
    console.print(Expectation.of(config, expected).table())
    for line in (*filter(None, [expected.noise_line]), *expected.masks):
        say(console, line)
    for remark in [*remarks, *session.notes, *shares.remarks(config), *expected.problems]:
        say(console, remark, "note:", "yellow")
