"""What commands say: plain text, as it is.

Paths, names and errors may hold what rich takes for markup (``[/x]``) or for an emoji (``:x:``),
and what a terminal takes for an order; here is the one place that knows.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from fl_darex.errors import ConfigError, DarexError

BAD_CONFIG, FAILED = 2, 1
"""Exit codes: what was asked for cannot be; it could not be done."""

_FOR_PEOPLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that shows texts, titles and cells of tables as they are."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, label: str = "", style: str = "") -> None:
    """Print a line, however long, so that it can be searched and copied.

    Args:
        console: Where to.
        text: What to say; control characters are shown as Python writes them.
        label: Words before it.
        style: How rich shows the label, such as ``"red"``.
    """
    first = f"{label} " if label else ""
    console.print(Text.assemble((first, style), visible(text)), soft_wrap=True)


def visible(text: str) -> str:
    """Return a text with its control characters written out, line ends excepted."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn an error of ours into a line for a person, and the exit code that programs rely on."""
    try:
        yield
    except DarexError as error:
        bad = isinstance(error, ConfigError)
        say(plain_console(stderr=True), str(error), "error:" if bad else "failed:", "red")
        raise typer.Exit(BAD_CONFIG if bad else FAILED) from None
    except OSError as error:
        if error.errno not in _FOR_PEOPLE:
            raise
        say(plain_console(stderr=True), str(error), "failed:", "red")
        raise typer.Exit(FAILED) from None
