"""Every method of the paper in a federation: accuracy and bytes on digits, in two regimes.

    python benchmarks/methods.py                # runs everything, writes benchmarks/results/
    python benchmarks/methods.py --resume       # runs what the results lack
    python benchmarks/methods.py --table        # prints the tables of the committed results

Many short rounds, where averaging over clients and rounds takes the noise of pruning away, and few
long ones, where deltas are large and it does not. AdamR's strength (L2: 0.1 at p = .99 and 1 at
p = .999; L1: 0.0003) and LoRA's learning rate were chosen on seed 0, which is not among the seeds.
"""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import Annotated, Any

import typer
from here import complete, run
from rich.console import Console
from rich.table import Table
from runs import PRUNE_ALL, RESULTS, half_width, load

SEEDS = (1, 2, 3, 4, 5)
REGIMES = {
    "many short rounds: 10 clients, 20 rounds of 10 steps": [
        *("federation.clients=10", "federation.rounds=20", "train.local-steps=10"),
    ],
    "few long rounds: 4 clients, 4 rounds of 60 steps": [
        *("federation.clients=4", "federation.rounds=4", "train.local-steps=60"),
    ],
}
STRENGTH = {0.99: {"l2": 0.1, "l1": 0.0003}, 0.999: {"l2": 1.0, "l1": 0.0003}}
ADAMW = ["train.optimizer=adamw"]
LORA = ["train.lora-rank=8", "train.lr=0.005"]


def adamr(p: float, norm: str) -> list[str]:
    """Return the settings of AdamR."""
    return ["train.optimizer=adamr", f"train.norm={norm}", f"train.delta-decay={STRENGTH[p][norm]}"]


def variants(p: float) -> dict[str, list[str]]:
    """Return what is compared at one p."""
    found = {
        "DARE": ADAMW,
        **{f"DAREx, {q}": [*ADAMW, f"compress.q={q}"] for q in ("q-v", "q-e")},
        **{f"DAREx, {q}": [*ADAMW, f"compress.q={q}"] for q in ("layer-q-v", "layer-q-e")},
        "DAREx, server-validation": [*ADAMW, "compress.q=server-validation"],
        "DARE, AdamR-L2": adamr(p, "l2"),
        "MP": [*ADAMW, "compress.method=magnitude"],
        "MP, AdamR-L1": [*adamr(p, "l1"), "compress.method=magnitude"],
        "WANDA": [*ADAMW, "compress.method=wanda"],
        "structured": [*ADAMW, "compress.method=structured"],
        "structured, AdamR-L2": [*adamr(p, "l2"), "compress.method=structured"],
        "LoRA, DARE": [*LORA, *ADAMW],
        "LoRA, DARE, AdamR-L2": [*LORA, *adamr(p, "l2")],
    }
    return {name: [f"compress.p={p}", *settings] for name, settings in found.items()}


def choices() -> list[tuple[str, str, list[str]]]:
    """Return (p, name, settings) of every line."""
    dense = ["compress.method=dense", *ADAMW]
    found = [("", "dense", dense), ("", "LoRA, dense", [*dense, *LORA])]
    return found + [
        (str(p), name, settings) for p in STRENGTH for name, settings in variants(p).items()
    ]


def run_one(regime: str, p: str, name: str, seed: int) -> dict[str, Any]:
    """Run one line with one seed."""
    settings = next(known for *key, known in choices() if key == [p, name])
    whole = [] if "compress.method=dense" in settings else [PRUNE_ALL]
    way = [*whole, "compress.downlink=dense", f"federation.seed={seed}"]
    settings = [*REGIMES[regime], *settings, *way]
    found = run("configs/quickstart.toml", settings, ["federation.evaluate-every=20"])
    return {"regime": regime, "p": p, "variant": name, **found}


def table(regime: str, rows: list[dict[str, Any]]) -> Table:
    """Return accuracy, its paired difference to dense with a 95 % interval, and bytes."""
    score = {(r["p"], r["variant"], r["seed"]): r["final_metric"] for r in rows}
    shown = Table(title=f"digits, {regime}, {len({r['seed'] for r in rows})} seeds")
    for column in ("p", "", "accuracy", "difference to dense (95 %)", "MB up", "up ratio"):
        shown.add_column(column, justify="left" if column in ("p", "") else "right")
    last = ""
    for p, name, _ in choices():
        mine = [row for row in rows if (row["p"], row["variant"]) == (p, name)]
        if not mine:
            continue
        if p != last:
            shown.add_section()
        gaps = [row["final_metric"] - score["", "dense", row["seed"]] for row in mine]
        half = 0.0
        if len(gaps) > 1:
            half = half_width(gaps)
        shown.add_row(
            p if p != last else "",
            name,
            f"{mean(row['final_metric'] for row in mine):.4f}",
            "" if (p, name) == ("", "dense") else f"{mean(gaps):+.4f} ± {half:.4f}",
            f"{mean(row['up_bytes'] for row in mine) / 1e6:.3f}",
            f"{mean(row['up_ratio'] for row in mine):.0f}x",
        )
        last = p
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="keep the runs that are there")] = False,
    parallel: Annotated[int, typer.Option(help="runs at once")] = 2,
) -> None:
    """Run all lines, write the results and print the tables."""
    if not table_only:
        named = [choice[:2] for choice in choices()]
        jobs = [(regime, *key, seed) for seed in SEEDS for regime, key in product(REGIMES, named)]
        known_by = lambda row: (row["regime"], row["p"], row["variant"], row["seed"])  # noqa: E731
        complete("methods", jobs, run_one, known_by, parallel, fresh=not resume)
    if (RESULTS / "methods.json").exists():
        rows = load("methods")
        for regime in REGIMES:
            mine = [row for row in rows if row["regime"] == regime]
            Console(width=110).print(table(regime, mine))


if __name__ == "__main__":
    typer.run(main)
