"""Accuracy and bytes on SST-2 with MiniLM: dense against DAREx, one seed.

    python benchmarks/sst2.py --model FOLDER --data FOLDER     # without them: from the hub
    python benchmarks/sst2.py --table

Each run is one ``fl-darex run configs/sst2-minilm.toml ...``.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from runs import PRUNE_ALL, load, run, save

VARIANTS = {
    "dense": ["compress.method=dense"],
    "DAREx p=.99": ["compress.p=0.99", PRUNE_ALL],
    "DAREx p=.999": ["compress.p=0.999", PRUNE_ALL],
}
UP_ALONE = "compress.downlink=dense"  # both_ways.py has the way down


def table(rows: list[dict[str, Any]]) -> Table:
    """Return accuracy and bytes of each variant."""
    shown = Table(title="SST-2, MiniLM 22.7 M, 4 clients, 5 rounds of 40 steps, fp16 values")
    for column in ("", "accuracy", "before round 1", "up ratio", "MB up", "MB down"):
        shown.add_column(column, justify="left" if not column else "right")
    for row in rows:
        shown.add_row(
            row["variant"],
            f"{row['final_metric']:.4f}",
            f"{row['initial_metric']:.4f}",
            f"{row['up_ratio']:.0f}x",
            f"{row['up_bytes'] / 1e6:,.1f}",
            f"{row['down_bytes'] / 1e6:,.1f}",
        )
    return shown


def main(
    model: Annotated[str, typer.Option(help="folder of the encoder; empty = hub")] = "",
    data: Annotated[str, typer.Option(help="folder with train.jsonl; empty = hub")] = "",
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Run all variants, write the results and print the table."""
    if not table_only:
        private = [f"task.model={model}"] * bool(model) + [f"task.dataset={data}"] * bool(data)
        rows = []
        for variant, settings in VARIANTS.items():
            found = run("configs/sst2-minilm.toml", [*settings, UP_ALONE], private)
            rows.append({"variant": variant, **found})
            save("sst2", rows)
    Console(width=100).print(table(load("sst2")))


if __name__ == "__main__":
    typer.run(main)
