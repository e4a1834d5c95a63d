"""How few bytes, up and down, hold SST-2 within a point: full weights against adapters.

    python benchmarks/few_bytes_sst2.py --tune --model FOLDER --data FOLDER   # rates, seed 0
    python benchmarks/few_bytes_sst2.py --model FOLDER --data FOLDER          # what results lack
    python benchmarks/few_bytes_sst2.py --table

MiniLM (22.7 M), 4 clients, 5,000 held out, evaluated after each round. Dense takes 5 rounds of 40
steps; every other arm takes 5 and, until it is within a point of dense, up to 15: bytes to that
target are what counts. All bytes are the ledger's: heads, envelopes and the handshake are in them.
The learning rate of each family of arms is chosen by ``--tune`` from one grid, from its middle to
where it falls, on seed 0 with 2,000 held out: run it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from here import Until, complete, run, untried
from rich.console import Console
from rich.table import Table
from runs import RESULTS, load

ADAMW = ["train.optimizer=adamw"]
SIZE = ["train.group-by-length=true", "train.threads=1", "federation.evaluate-every=1"]
FP16, ONE_BIT = ["compress.values=fp16"], ["compress.values=eden1"]
SHARED = ["compress.mask=round"]
WHOLE = ["compress.p=0"]
ROUNDS, POINT = 15, 0.01
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
    """Return the family and the settings of every arm, by its name; the most telling come first."""
    found = {"dense": ("weights", [*ADAMW, "compress.method=dense", "compress.downlink=dense"])}
    one_bit = {p: [*ADAMW, f"compress.p={p}", *ONE_BIT] for p in (0.9, 0.984, 0.99, 0.997)}
    adamr = "train.delta-decay=0.01"
    found["eden1 p=0.99 shared"] = ("weights", [*one_bit[0.99], *SHARED])
    for name in ("LoRA r=1", "LoRA r=8"):
        found[f"{name}, eden1"] = (name, [*ADAMW, *ADAPTERS[name], *WHOLE, *ONE_BIT])
    for p, q in product((0.997, 0.999), ("", ", curvature")):
        settings = [adamr, f"compress.p={p}", *ONE_BIT, *SHARED]
        chosen = ["compress.q=curvature"] * bool(q)
        found[f"eden1 p={p} shared, AdamR{q}"] = ("weights", [*settings, *chosen])
    for p, rotate in product((0.999, 0.99), ("", ", fixed")):
        fixed = ["compress.rotate=false"] * bool(rotate)
        found[f"mask first p={p}{rotate}"] = (f"masked {str(p)[1:]}", [*masked(p), *fixed])
    found["eden1 p=0.997 shared"] = ("weights", [*one_bit[0.997], *SHARED])
    for name, settings in ADAPTERS.items():
        for values, coded in (("eden1", ONE_BIT), ("fp16", FP16)):
            found[f"{name}, {values}"] = (name, [*ADAMW, *settings, *WHOLE, *coded])
    for p in (0.984, 0.9):
        found[f"eden1 p={p} shared"] = ("weights", [*one_bit[p], *SHARED])
    for p, down in product((0.99, 0.984, 0.9), ("eden2", "eden4")):
        more = [*SHARED, f"compress.downlink-values={down}"]
        found[f"eden1 p={p} shared, down {down}"] = ("weights", [*one_bit[p], *more])
    for p in (0.99, 0.984, 0.9):
        found[f"eden1 p={p}"] = ("weights", one_bit[p])
    found["fp16 p=0.999 AdamR"] = ("weights", [adamr, "compress.p=0.999", *FP16])
    for p in (0.99, 0.999):
        found[f"fp16 p={p}"] = ("weights", [*ADAMW, f"compress.p={p}", *FP16])
    return found


def scores(rows: list[dict[str, Any]], family: str) -> dict[float, float]:
    """Return what a family reached with each learning rate that was tried."""
    return {row["lr"]: row["final_metric"] for row in rows if row["family"] == family}


def rate(family: str) -> float:
    """Return the learning rate that `--tune` found for a family."""
    found = scores(load("few-bytes-sst2-lr"), family)
    return max(found, key=lambda lr: found[lr])


def _run(settings: list[str], model: str, data: str, **more: Any) -> dict[str, Any]:
    private = [f"task.model={model}"] * bool(model) + [f"task.dataset={data}"] * bool(data)
    return run("configs/sst2-minilm.toml", [*settings, *SIZE], private, **more)


def tune_one(family: str, lr: float, model: str, data: str) -> dict[str, Any]:
    """Run two rounds of a family with one learning rate, on seed 0, which holds out others."""
    _, settings = families()[family]
    short = ["federation.rounds=2", "federation.seed=0", "task.holdout=2000", f"train.lr={lr}"]
    return {"family": family, "lr": lr, **_run([*settings, *short], model, data)}


def run_one(arm: str, seed: int, model: str, data: str) -> dict[str, Any]:
    """Run one arm with one seed; it ends where it is within a point of dense, after 5 rounds."""
    family, settings = arms()[arm]
    rounds, until = (5, None) if arm == "dense" else (ROUNDS, Until(_target(seed), 5))
    more = [f"federation.rounds={rounds}", f"federation.seed={seed}", f"train.lr={rate(family)}"]
    found = _run([*settings, *more], model, data, by_round=True, until=until)
    return {"arm": arm, **found}


def _target(seed: int) -> float:
    """Return the metric that counts, which the dense arm sets; it comes first."""
    rows = [row for row in load("few-bytes-sst2") if (row["arm"], row["seed"]) == ("dense", seed)]
    return float(rows[0]["final_metric"]) - POINT


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
        target = dense["final_metric"] - POINT
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
    parallel: Annotated[int, typer.Option(help="runs at once, on one core each")] = 2,
) -> None:
    """Run what the results lack, and print the tables."""
    private = [str(Path(folder).resolve()) if folder else "" for folder in (model, data)]
    if tune:
        rows: list[dict[str, Any]] = []
        while jobs := [
            (family, lr, *private)
            for family, (grid, _) in families().items()
            for lr in untried(GRIDS[grid], scores(rows, family))
        ]:
            known_by = lambda row: (row["family"], row["lr"], *private)  # noqa: E731
            rows = complete("few-bytes-sst2-lr", jobs, tune_one, known_by, parallel)
    elif not table_only:
        named = [arm for arm in arms() if arm.startswith(only)]
        # The first arm, dense, sets the target of the others.
        for some in (named[:1], named[1:]) if not only else (named,):
            jobs = [(arm, seed, *private) for seed in range(1, seeds + 1) for arm in some]
            known_by = lambda row: (row["arm"], row["seed"], *private)  # noqa: E731
            complete("few-bytes-sst2", jobs, run_one, known_by, parallel)
    if not tune and (RESULTS / "few-bytes-sst2.json").exists():
        for one in table(load("few-bytes-sst2")):
            Console(width=110).print(one)


if __name__ == "__main__":
    typer.run(main)
