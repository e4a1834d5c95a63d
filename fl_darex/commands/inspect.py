"""``fl-darex inspect``: what is in a file of changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_darex.commands.messages import plain_console, say, told_in_one_line, visible
from fl_darex.commands.progress import bars
from fl_darex.shown import counted

if TYPE_CHECKING:
    from fl_darex.deltas import Report

ABOUT = """\
FILE is what fl-darex prune wrote. Each row is a tensor: how many of its entries are in FILE, what
they are divided by (q), their bytes with their positions, bits a number, mean magnitude, root of
the mean square and largest magnitude of the numbers (not divided by q), and noise: how long what
dropping and rounding add is, in lengths of the change. With BASE, which is checked, moved is how
large the numbers are beside the weights."""

_WIDE = 170


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    base: Annotated[Path | None, typer.Argument(metavar="[BASE]", hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same as one JSON object")] = False,
) -> None:
    """Say what is in a file that fl-darex prune wrote; every byte of it is checked."""
    console = plain_console()
    with told_in_one_line():
        from fl_darex import deltas

        delta = deltas.open_delta(file)
        model = None if base is None else deltas.open_base(base, delta)
        with bars(plain_console(stderr=True)) as told:
            report = deltas.inspect(delta, model, told)
        if as_json:
            typer.echo(json.dumps(report.fields()))
            return
        if not console.is_terminal:
            console.width = max(console.width, _WIDE)  # a file has room for whole rows
        _show(console, report)


def _show(console: Console, report: Report) -> None:
    notes = ", ".join(f"{key} {value}" for key, value in report.notes.items())
    say(console, notes)
    fits = " (BASE is that one)" if report.base_fits else ""
    say(console, f"for the base with the fingerprint {report.base}{fits}")
    ratio = report.dense_size / report.size
    say(console, f"{report.size / 1e6:,.3f} MB, 1/{ratio:,.0f} of all tensors")
    if report.same or report.tied:
        say(
            console,
            f"{counted(report.same, 'tensor')} as in the base, {report.tied} tied to others",
        )
    for path, inside in report.files.items():
        say(console, f"{path}: {'in the file' if inside else 'as beside the base'}")
    console.print(_table(report))


def _table(report: Report) -> Table:
    table = Table(box=None)
    names = ("kept", "of", "values", "q", "bytes", "bits", "mean", "rms", "largest", "noise")
    table.add_column("tensor", overflow="fold")
    table.add_column("shape")
    for name in (*names, *(["moved"] if report.base_fits else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.tensors:
        shape = "x".join(map(str, one.shape)) or "scalar"
        role = "" if one.role == "pruned" else f" ({one.role})"
        cells = [visible(one.name) + role, shape, f"{one.kept:,}", f"{one.entries:,}", one.values]
        cells += [f"{one.q:.4g}", f"{one.size:,}", f"{one.bits:.2f}"]
        cells += [f"{number:.3g}" for number in (one.mean, one.rms, one.largest)]
        cells.append("" if one.noise is None else f"{one.noise:.3g}")
        if report.base_fits:
            cells.append("" if one.share is None else f"{one.share:.2%}")
        table.add_row(*cells)
    return table
