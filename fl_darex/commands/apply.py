"""``fl-darex apply``: a base and a file of changes become a model again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.commands.progress import bars

ABOUT = """\
FILE is what fl-darex prune wrote, BASE the folder that it was made against: it is told by a
fingerprint of its tensors, and another one is refused. DIR is a folder that from_pretrained loads,
with the configuration and the tokenizer of the fine-tuned model."""


def apply(
    base: Annotated[Path, typer.Argument(metavar="BASE", hidden=True)],
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder that is made")],
    no_files: Annotated[
        bool, typer.Option("--no-files", help="write tensors alone, no configuration or tokenizer")
    ] = False,
) -> None:
    """Make the fine-tuned model's folder of BASE and FILE, as far as survivors tell."""
    console = plain_console()
    with told_in_one_line():
        from fl_darex import deltas

        delta = deltas.open_delta(file)
        model = deltas.open_base(base, delta)
        with bars(console) as told:
            deltas.apply(model, delta, out, carry_files=not no_files, told=told)
        say(console, f"model: {out}")
