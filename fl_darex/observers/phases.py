"""What goes on before the first round: a spinner, or where none can be, a line afterwards."""

from __future__ import annotations

import time

from rich.console import Console
from rich.status import Status


class Phases:
    """Says what a command is at, one phase after the other.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._words, self._since = "", 0.0
        self._over: list[str] = []
        self._spinner: Status | None = None

    def begin(self, words: str) -> None:
        """Say that a phase begins, and that the one before it is over."""
        self._close()
        self._words, self._since = words, time.monotonic()
        if self._console.is_terminal:
            self._spinner = Status(words, console=self._console)
            self._spinner.start()

    def end(self) -> None:
        """Say how long the phases took that are over now, if there are any."""
        self._close()
        if self._over and not self._console.is_terminal:
            self._console.print(", ".join(self._over), soft_wrap=True)
        self._over = []

    def stop(self) -> None:
        """Take the spinner away: the phases came to nothing."""
        self._words, self._over = "", []
        self._close()

    def _close(self) -> None:
        if self._words:
            self._over.append(f"{self._words}: {time.monotonic() - self._since:.1f} s")
        self._words = ""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
