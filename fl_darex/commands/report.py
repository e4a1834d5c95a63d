"""``fl-darex report``: what runs came to, as a page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.errors import ConfigError

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR...",
        help="a run folder, a study's folder, or several run folders",
        show_default=False,
    ),
]


def report(
    folders: Folders,
    out: Annotated[
        Path | None,
        typer.Option(help="the page; default report.html in the first DIR", show_default=False),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="folder for the figures as SVG and PDF; default figures beside the page",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one HTML page about runs: tables, figures, settings, what failed.

    Runs that differ in the seed alone are the seeds of one arm; others are compared. The page needs
    no other file and no network.
    """
    with told_in_one_line():
        try:
            from fl_darex.study.page.page import write_report
            from fl_darex.study.read_folders import load_result
            from fl_darex.study.sentence import incomplete
        except ImportError as error:
            raise ConfigError(
                f"a report needs {error.name}, which is not installed; "
                "pip install 'fl-darex[study]'"
            ) from None
        result = load_result(*folders)
        page, *pictures = write_report(result, out or folders[0] / "report.html", figures)
        console = plain_console()
        if words := incomplete(result):
            say(console, words, "note:", "yellow")
        say(console, f"report: {shlex.quote(str(page))}")
        if pictures:
            say(console, f"figures: {shlex.quote(str(pictures[0].parent))}")
