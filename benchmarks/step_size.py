"""How large a local step the two lines bear: the torch example with two clients.

    python benchmarks/step_size.py             # some minutes
    python benchmarks/step_size.py --table     # prints the table of the committed results

``examples/torch-app`` from scratch: ten rounds, p = .99, fp16, masks of their own, both clients in
one process. More local epochs are larger changes, and with two clients little of the noise of
dropping averages out: it is sqrt(.99 / .01 / 2) = 7 times the change. SGD is the app's own
(momentum .9), "Adam" is AdamR without its pull, "AdamR" has delta_decay = .1 (``adamr.patch``). One
seed.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from plug_in import accuracy
from rich.console import Console
from rich.table import Table
from runs import RESULTS, ROOT, load, save

sys.path.insert(0, str(ROOT / "tests"))

OPTIMIZERS: dict[str, tuple[list[str], str]] = {
    "SGD": ([], ""),
    "Adam": (["adamr.patch"], "delta_decay=0.0"),
    "AdamR": (["adamr.patch"], "delta_decay=0.1"),
}
STEPS = {  # learning rate and local epochs: moderate, longer, and large
    "SGD": [(0.01, 1), (0.01, 3), (0.03, 3)],
    "Adam": [(0.001, 1), (0.001, 3), (0.003, 3)],
    "AdamR": [(0.001, 1), (0.001, 3), (0.003, 3)],
}
CASES = [
    (optimizer, lines, *step)
    for optimizer, steps in STEPS.items()
    for step in steps
    for lines in (False, True)
    if lines or optimizer != "AdamR"
]


def run(optimizer: str, lines: bool, lr: float, epochs: int) -> dict[str, Any]:
    """Run the app once, with the two lines or without."""
    from example_apps import prepare, run_direct

    patches, option = OPTIMIZERS[optimizer]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_DAREX_CACHE"] = f"{folder}/cache"
        app = prepare("torch-app", Path(folder), *(["darex.patch"] if lines else []), *patches)
        task = app / "torch_app" / "task.py"
        task.write_text(task.read_text("utf-8").replace("delta_decay=0.1", option), "utf-8")
        torch.manual_seed(1)
        config = {"learning-rate": lr, "local-epochs": epochs, "fraction-evaluate": 0.0}
        _, out = run_direct(app, 2, **config)
        score, _ = accuracy("torch", out)
    case = {"optimizer": optimizer, "two_lines": lines, "lr": lr, "epochs": epochs}
    return {**case, "accuracy": score}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return accuracies, a line for each optimizer and step."""
    shown = Table(title="accuracy after ten rounds, two clients, p = .99")
    for column in ("optimizer", "learning rate", "local epochs", "plain", "with the two lines"):
        shown.add_column(column, justify="left" if column == "optimizer" else "right")
    found = {_case(row): row["accuracy"] for row in rows}
    for optimizer, steps in STEPS.items():
        for step in steps:
            scores = [found.get((optimizer, lines, *step)) for lines in (False, True)]
            cells = ("" if score is None else f"{score:.3f}" for score in scores)
            shown.add_row(optimizer, *map(str, step), *cells)
    return shown


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["optimizer"], row["two_lines"], row["lr"], row["epochs"]


def main(
    again: Annotated[bool, typer.Option(help="run what the results already have, too")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Run all cases that the results lack, write the results and print the table."""
    known = (RESULTS / "step-size.json").exists() and not again
    rows: list[dict[str, Any]] = load("step-size") if known or table_only else []
    if not table_only:
        torch.set_num_threads(1)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        for case in [case for case in CASES if case not in map(_case, rows)]:
            rows.append(run(*case))
            save("step-size", rows)
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
