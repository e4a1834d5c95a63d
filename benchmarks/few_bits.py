"""Where bits go: value codings, p, masks and mask-first training on digits, in two regimes.

    python benchmarks/few_bits.py            # runs what the results lack
    python benchmarks/few_bits.py --table    # prints the tables of the committed results

Both ways: the server's step is written as updates are. Learning rates of mask-first training were
chosen on seed 0, which is not among the seeds, by ``--tune``: run it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from statistics import mean
from typing import Annotated, Any

import typer
from here import complete, run, untried
from methods import REGIMES
from rich.console import Console
from rich.table import Table
from runs import RESULTS, half_width, load

SEEDS = (1, 2, 3, 4, 5)
PS = (0.9, 0.97, 0.984, 0.99, 0.995, 0.999)
CODINGS = ("fp16", "int8", "int4", "eden2", "eden1")
ADAMW = ["train.optimizer=adamw"]
DENSE = [*ADAMW, "compress.method=dense", "compress.downlink=dense"]
STRENGTH = {0.984: 0.1, 0.99: 0.1, 0.999: 1.0}
MASKED = (0.984, 0.99, 0.999)
TRIED = (0.005, 0.01, 0.02, 0.05, 0.1)


def arms() -> dict[str, list[str]]:
    """Return the settings of every arm by its name."""
    found = {"dense": DENSE}
    for values, p in product(CODINGS, PS):
        found[f"{values} p={p}"] = [*ADAMW, f"compress.p={p}", f"compress.values={values}"]
    for mask, values, p in product(("round", "disjoint"), ("fp16", "eden1"), (0.9, 0.984, 0.99)):
        one = found[f"{values} p={p}"]
        found[f"{values} p={p} {mask}"] = [*one, f"compress.mask={mask}"]
    for values, p in product(("fp16", "eden1"), (0.984, 0.99, 0.999)):
        one = found[f"{values} p={p}"][1:]
        found[f"{values} p={p} AdamR"] = [*one, f"train.delta-decay={STRENGTH[p]}"]
        found[f"{values} p={p} curvature"] = [*ADAMW, *one, "compress.q=curvature"]
    for p, rotate in product(MASKED, ("true", "false")):
        kind = "rotating" if rotate == "true" else "fixed"
        found[f"eden1 p={p} mask first, {kind}"] = [*masked(p), f"compress.rotate={rotate}"]
    return found


def masked(p: float) -> list[str]:
    """Return the settings of mask-first training with one mask for all clients, but for its lr."""
    how = [*ADAMW, "train.masked=true", "train.dense-lr=0.001"]
    return [*how, f"compress.p={p}", "compress.values=eden1", "compress.mask=round"]


def rate(regime: str, settings: list[str]) -> list[str]:
    """Return the learning rate of mask-first training that ``--tune`` found; of others nothing."""
    if "train.masked=true" not in settings:
        return []
    p = next(p for p in MASKED if f"compress.p={p}" in settings)
    found = scores(load("few-bits-lr"), regime, p)
    return [f"train.lr={max(found, key=lambda lr: found[lr])}"]


def scores(rows: list[dict[str, Any]], regime: str, p: float) -> dict[float, float]:
    """Return what mask-first training reached with each learning rate that was tried."""
    mine = [row for row in rows if (row["regime"], row["p"]) == (regime, p)]
    return {row["lr"]: row["final_metric"] for row in mine}


def run_one(regime: str, arm: str, seed: int) -> dict[str, Any]:
    """Run one arm with one seed."""
    asked = arms()[arm]
    settings = [*REGIMES[regime], *asked, *rate(regime, asked), f"federation.seed={seed}"]
    found = run("configs/quickstart.toml", settings, ["federation.evaluate-every=20"])
    return {"regime": regime, "arm": arm, **found}


def tune_one(regime: str, p: float, lr: float) -> dict[str, Any]:
    """Run mask-first training with one learning rate on seed 0."""
    settings = [*REGIMES[regime], *masked(p), f"train.lr={lr}", "federation.seed=0"]
    found = run("configs/quickstart.toml", settings, ["federation.evaluate-every=20"])
    return {"regime": regime, "p": p, "lr": lr, **found}


def tables(rows: list[dict[str, Any]]) -> Iterable[Table]:
    """Yield accuracy, its paired difference to dense with a 95 % interval, and bytes."""
    score = {(row["regime"], row["arm"], row["seed"]): row["final_metric"] for row in rows}
    for regime in REGIMES:
        shown = Table(title=f"digits, {regime}")
        for column in ("", "seeds", "accuracy", "difference to dense (95 %)", "up", "total"):
            shown.add_column(column, justify="left" if not column else "right")
        for arm in arms():
            mine = [row for row in rows if (row["regime"], row["arm"]) == (regime, arm)]
            gaps = [
                row["final_metric"] - score[regime, "dense", row["seed"]]
                for row in mine
                if (regime, "dense", row["seed"]) in score
            ]
            if not gaps:
                continue
            half = "alone"
            if len(gaps) > 1:
                wide = half_width(gaps)
                half = f"± {wide:.4f}"
            shown.add_row(
                *(arm, str(len(mine)), f"{mean(row['final_metric'] for row in mine):.4f}"),
                "" if arm == "dense" else f"{mean(gaps):+.4f} {half}",
                f"{mean(row['up_ratio'] for row in mine):,.0f}x",
                f"{mean(row['total_ratio'] for row in mine):,.0f}x",
            )
        yield shown


def main(
    table: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="learning rates of mask first")] = False,
    parallel: Annotated[int, typer.Option(help="runs at once")] = 2,
) -> None:
    """Run what the results lack, write them and print the tables."""
    if tune:
        rows: list[dict[str, Any]] = []
        while jobs := [
            (regime, p, lr)
            for regime, p in product(REGIMES, MASKED)
            for lr in untried(TRIED, scores(rows, regime, p))
        ]:
            known_by = lambda row: (row["regime"], row["p"], row["lr"])  # noqa: E731
            rows = complete("few-bits-lr", jobs, tune_one, known_by, parallel)
        return
    if not table:
        jobs = [(regime, arm, seed) for seed in SEEDS for arm in arms() for regime in REGIMES]
        known_by = lambda row: (row["regime"], row["arm"], row["seed"])  # noqa: E731
        complete("few-bits", jobs, run_one, known_by, parallel)
    if (RESULTS / "few-bits.json").exists():
        for one in tables(load("few-bits")):
            Console(width=110).print(one)


if __name__ == "__main__":
    typer.run(main)
