"""Accuracy and bytes on digits: dense, DARE and DAREx, over seeds, with paired intervals.

    python benchmarks/digits.py                # runs everything, writes benchmarks/results/
    python benchmarks/digits.py --table        # prints the table of the committed results

Each run is one ``fl-darex run configs/quickstart.toml ...``; nothing else enters the table.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from runs import PRUNE_ALL, half_width, load, run, save

# delta-decay was chosen on seed 0, which is therefore not among the seeds of the table.
SEEDS = (1, 2, 3, 4, 5)
VARIANTS = {
    "dense, AdamW": ["compress.method=dense", "train.optimizer=adamw"],
    "DARE p=.99, AdamW": [PRUNE_ALL, "compress.p=0.99", "train.optimizer=adamw"],
    "DAREx p=.99, AdamR": [PRUNE_ALL, "compress.p=0.99", "train.delta-decay=0.1"],
    "DARE p=.999, AdamW": [PRUNE_ALL, "compress.p=0.999", "train.optimizer=adamw"],
    "DAREx p=.999, AdamR": [PRUNE_ALL, "compress.p=0.999", "train.delta-decay=1.0"],
}


def run_one(variant: str, seed: int) -> dict[str, Any]:
    """Run one variant with one seed."""
    # The way up alone: both_ways.py has the way down.
    settings = [*VARIANTS[variant], "compress.downlink=dense", f"federation.seed={seed}"]
    # One worker each, so that runs share the cores; the result does not depend on it.
    private = ["resources.actors=1", "federation.evaluate-every=20"]
    return {"variant": variant, **run("configs/quickstart.toml", settings, private)}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return mean accuracy, its paired difference to dense with a 95 % interval, and bytes."""
    metric = {(row["variant"], row["seed"]): row["final_metric"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    shown = Table(title=f"digits, 10 clients, 20 rounds, fp16 values, {len(seeds)} seeds")
    for column in ("", "accuracy", "difference to dense (95 %)", "up ratio", "MB up per run"):
        shown.add_column(column, justify="left" if not column else "right")
    dense = next(iter(VARIANTS))
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        gaps = [metric[variant, seed] - metric[dense, seed] for seed in seeds]
        half = half_width(gaps)
        difference = "" if variant == dense else f"{mean(gaps):+.4f} ± {half:.4f}"
        shown.add_row(
            variant,
            f"{mean(row['final_metric'] for row in mine):.4f}",
            difference,
            f"{mean(row['up_ratio'] for row in mine):.0f}x",
            f"{mean(row['up_bytes'] for row in mine) / 1e6:.3f}",
        )
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    parallel: Annotated[int, typer.Option(help="runs at once")] = 2,
) -> None:
    """Run all variants and seeds, write the results and print the table."""
    if not table_only:
        jobs = [(variant, seed) for seed in SEEDS for variant in VARIANTS]
        with ThreadPoolExecutor(parallel) as pool:
            save("digits", list(pool.map(lambda job: run_one(*job), jobs)))
    Console(width=100).print(table(load("digits")))


if __name__ == "__main__":
    typer.run(main)
