"""The command ``fl-darex``: where its commands are registered."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from fl_darex import __version__
from fl_darex.commands.apply import ABOUT as APPLY
from fl_darex.commands.apply import apply
from fl_darex.commands.check import check
from fl_darex.commands.inspect import ABOUT as INSPECT
from fl_darex.commands.inspect import inspect
from fl_darex.commands.prune import ABOUT as PRUNE
from fl_darex.commands.prune import prune
from fl_darex.commands.report import report
from fl_darex.commands.run import own_keys, run
from fl_darex.commands.settings import ABOUT
from fl_darex.commands.study import ABOUT as STUDY
from fl_darex.commands.study import study

# Without rich's markup: a bracket in a name is a bracket. Click has hints of its own for commands.
app = typer.Typer(
    help="Federated fine-tuning with pruned updates, every byte counted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,
)
for command in (run, check):
    does = str(command.__doc__)
    about = ABOUT.format(command=command.__name__)
    app.command(help=f"{does}\n\n{about}", epilog=own_keys())(command)
app.command()(report)
for other, words in ((study, STUDY), (prune, PRUNE), (apply, APPLY), (inspect, INSPECT)):
    app.command(help=f"{other.__doc__}\n\n{words}")(other)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-darex {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Federated fine-tuning with pruned updates, every byte counted."""


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    app()
