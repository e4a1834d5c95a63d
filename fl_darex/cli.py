"""The command ``fl-darex``: where its commands are registered."""

from __future__ import annotations

import typer

from fl_darex.commands.run import own_keys, run

app = typer.Typer(
    help="Federated fine-tuning with pruned updates, every byte counted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=own_keys())(run)


@app.callback()
def root() -> None:
    """Federated fine-tuning with pruned updates, every byte counted."""


def main() -> None:
    """Entry point of the console script."""
    app()
