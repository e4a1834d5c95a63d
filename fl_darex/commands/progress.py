"""How far a command is, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from fl_darex.deltas.settings import Told, silent


@contextmanager
def bars(console: Console) -> Iterator[Told]:
    """Yield what shows a bar for each thing that goes on; nothing where nobody looks."""
    if not console.is_terminal:
        yield silent
        return
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    words = TextColumn("{task.description}", markup=False)
    columns = (words, BarColumn(), TaskProgressColumn(), Remaining())
    with Progress(*columns, console=console, transient=True) as progress:
        shown: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = progress.add_task(what, total=total)
            progress.update(shown[what], completed=done)

        yield told
