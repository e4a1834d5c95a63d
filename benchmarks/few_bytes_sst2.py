"""How few bytes, up and down, hold SST-2 within a point: full weights against adapters.

    python benchmarks/few_bytes_sst2.py --tune --model FOLDER --data FOLDER   # rates, seed 0
    python benchmarks/few_bytes_sst2.py --model FOLDER --data FOLDER          # what results lack
    python benchmarks/few_bytes_sst2.py --table

MiniLM (22.7 M), 4 clients, 5,000 held out, evaluated after each round. Dense takes 5 rounds of 40
steps; every other arm may take up to 15, as bytes to a target are what counts. All bytes are the
ledger's: heads, envelopes and the handshake are in them. The learning rate of each family of arms
is chosen by ``--tune`` from one grid, on seed 0 with 2,000 held out: run it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from here import complete, run
from rich.console import Console
from rich.table import Table
from runs import RESULTS, load

ADAMW = ["train.optimizer=adamw"]
SIZE = ["train.precision=bf16", "train.threads=2", "federation.evaluate-every=1"]
FP16, ONE_BIT = ["compress.values=fp16"], ["compress.values=eden1"]
SHARED = ["compress.mask=round"]
WHOLE = ["compress.p=0"]
ROUNDS = 15
GRIDS = {
    "weights": (5e-5, 1e-4, 2e-4, 4e-4),
    "masked": (1e-3, 3e-3, 1e-2, 3e-2),
    "adapter": (1e-3, 3e-3, 1e-2, 3e-2),
}
ADAPTERS = {
    "LoRA r=8": ["train.adapter=lora", "train.lora-rank=8"],
    "LoRA r=1": ["train.adapter=lora", "train.lora-rank=1"],
    "FFA-LoRA r=8": ["train.adapter=ffa-lora", "train.lora-rank=8"],
    "Uni-LoRA": ["train.adapter=unilora"],
    "FourierFT": ["train.adapter=fourierft"],
    "VeRA": ["train.adapter=vera"],
    "LayerNorms": ["train.adapter=layernorms"],
}


def families() -> dict[str, tuple[str, list[str]]]:
    """Return what shares a learning rate: its grid, and settings of the run that chooses it."""
    found = {
        "weights": ("weights", [*ADAMW, "compress.p=0.99", *ONE_BIT, *SHARED]),
        "masked .99": ("masked", masked(0.99)),
        "masked .999": ("masked", masked(0.999)),
    }
    for name, settings in ADAPTERS.items():
        found[name] = ("adapter", [*ADAMW, *settings, *WHOLE])
    return found


def masked(p: float) -> list[str]:
    """Return the settings of mask-first training, one bit and one mask both ways."""
    return [
        *ADAMW,
        f"compress.p={p}",
        *ONE_BIT,
        *SHARED,
        "train.masked=true",
        "train.dense-lr=1e-3",
    ]


def arms() -> dict[str, tuple[str, list[str]]]:
    """Return the family and the settings of every arm, by its name."""
    full: dict[str, list[str]] = {
        "dense": [*ADAMW, "compress.method=dense", "compress.downlink=dense"],
        "fp16 p=.99": [*ADAMW, "compress.p=0.99"],
        "fp16 p=.999": [*ADAMW, "compress.p=0.999"],
        "fp16 p=.999 AdamR": ["train.delta-decay=0.01", "compress.p=0.999"],
    }
    for p in (0.9, 0.984, 0.99):
        full[f"eden1 p={p}"] = [*ADAMW, f"compress.p={p}", *ONE_BIT]
        for down in ("eden1", "eden2", "eden4"):
            more = [*SHARED, f"compress.downlink-values={down}"]
            full[f"eden1 p={p} shared, down {down}"] = [*full[f"eden1 p={p}"], *more]
    full["eden1 p=.997 shared AdamR"] = [
        *("train.delta-decay=0.01", "compress.p=0.997", *ONE_BIT, *SHARED)
    ]
    found = {name: ("weights", settings) for name, settings in full.items()}
    for p in (0.99, 0.999):
        name = f"masked {str(p)[1:]}"
        found[f"mask first p={p}"] = (name, masked(p))
        found[f"mask first p={p}, fixed"] = (name, [*masked(p), "compress.rotate=false"])
    for name, settings in ADAPTERS.items():
        found[name] = (name, [*ADAMW, *settings, *WHOLE, "compress.values=fp32"])
        found[f"{name}, eden1"] = (name, [*ADAMW, *settings, *WHOLE, *ONE_BIT])
    return found


def rate(family: str) -> float:
    """Return the learning rate that `--tune` found for a family."""
    mine = [row for row in load("few-bytes-sst2-lr") if row["family"] == family]
    return float(max(mine, key=lambda row: float(row["final_metric"]))["lr"])


def _run(settings: list[str], model: str, data: str, **more: Any) -> dict[str, Any]:
    private = [f"task.model={model}"] * bool(model) + [f"task.dataset={data}"] * bool(data)
    return run("configs/sst2-minilm.toml", [*settings, *SIZE], private, **more)


def tune_one(family: str, lr: float, model: str, data: str) -> dict[str, Any]:
    """Run two rounds of a family with one learning rate, on seed 0, which holds out others."""
    _, settings = families()[family]
    short = ["federation.rounds=2", "federation.seed=0", "task.holdout=2000", f"train.lr={lr}"]
    return {"family": family, "lr": lr, **_run([*settings, *short], model, data)}


def run_one(arm: str, seed: int, model: str, data: str) -> dict[str, Any]:
    """Run one arm with one seed."""
    family, settings = arms()[arm]
    rounds = 5 if arm == "dense" else ROUNDS
    more = [f"federation.rounds={rounds}", f"federation.seed={seed}", f"train.lr={rate(family)}"]
    return {"arm": arm, **_run([*settings, *more], model, data, by_round=True)}


def to_target(row: dict[str, Any], target: float) -> tuple[int, int] | None:
    """Return the rounds and the bytes, both ways, after which a run first reached a metric."""
    by, sent = row["by_round"], 0
    for place, metric in enumerate(by["metric"]):
        sent += by["up_bytes"][place] + by["down_bytes"][place]
        if metric is not None and metric >= target:
            return by["round"][place], sent
    return None


def table(rows: list[dict[str, Any]]) -> Iterable[Table]:
    """Yield, for each seed, bytes until a point below dense, and what the whole run took."""
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed]
        dense = next((row for row in mine if row["arm"] == "dense"), None)
        if dense is None:
            continue
        target = dense["final_metric"] - 0.01
        whole = sum(dense["by_round"]["up_bytes"]) + sum(dense["by_round"]["down_bytes"])
        shown = Table(title=f"SST-2, MiniLM, seed {seed}: bytes until {target:.3f}")
        for column in ("", "lr", "after 5", "best", "round", "kB", "of dense"):
            shown.add_column(column, justify="left" if not column else "right")
        for row in mine:
            metrics, reached = row["by_round"]["metric"], to_target(row, target)
            cells = ("never", "", "") if reached is None else _cells(*reached, whole)
            lr = row["command"].partition("train.lr=")[2].split()[0]
            best = max(metric for metric in metrics if metric is not None)
            shown.add_row(row["arm"], lr, f"{metrics[4]:.4f}", f"{best:.4f}", *cells)
        yield shown


def _cells(round_: int, sent: int, whole: int) -> tuple[str, str, str]:
    return str(round_), f"{sent / 1e3:,.0f}", f"1/{whole / sent:,.0f}"


def main(
    model: Annotated[str, typer.Option(help="folder of the encoder; empty = hub")] = "",
    data: Annotated[str, typer.Option(help="folder with train.jsonl; empty = hub")] = "",
    tune: Annotated[bool, typer.Option("--tune", help="choose learning rates")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    seeds: Annotated[int, typer.Option(help="seeds, from 1")] = 1,
    only: Annotated[str, typer.Option(help="arms that begin so")] = "",
) -> None:
    """Run what the results lack, one run at a time on all cores, and print the tables."""
    private = [str(Path(folder).resolve()) if folder else "" for folder in (model, data)]
    if tune:
        tried = [(f, lr, *private) for f, (g, _) in families().items() for lr in GRIDS[g]]
        complete(
            "few-bytes-sst2-lr", tried, tune_one, lambda r: (r["family"], r["lr"], *private), 1
        )
    elif not table_only:
        named = [arm for arm in arms() if arm.startswith(only)]
        jobs = [(arm, seed, *private) for seed, arm in product(range(1, seeds + 1), named)]
        complete("few-bytes-sst2", jobs, run_one, lambda r: (r["arm"], r["seed"], *private), 1)
    if not tune and (RESULTS / "few-bytes-sst2.json").exists():
        for one in table(load("few-bytes-sst2")):
            Console(width=110).print(one)


if __name__ == "__main__":
    typer.run(main)
