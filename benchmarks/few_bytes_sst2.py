"""How few bytes, up and down, hold SST-2 within a point: full weights against adapters.

    python benchmarks/few_bytes_sst2.py --tune --model FOLDER --data FOLDER   # rates, seed 0
    python benchmarks/few_bytes_sst2.py --model FOLDER --data FOLDER          # what results lack
    python benchmarks/few_bytes_sst2.py --second --model FOLDER --data FOLDER # 3 seeds of the best
    python benchmarks/few_bytes_sst2.py --table

MiniLM (22.7 M), 4 clients, 5,000 held out, evaluated after each round. Dense takes 5 rounds of 40
steps; every other arm takes 5 and, until it is within a point of dense or has sent 1/1,000 of what
dense did, up to 15: bytes to that target are what counts. All bytes are the ledger's: heads,
envelopes and the handshake are in them.
The learning rate of each family of arms is chosen by ``--tune`` from one grid, from its middle to
where it falls, on seed 0 with 2,000 held out: run it first. Its first 22 runs took float32; all
others take bf16 autocast, four times as fast on a core that multiplies in it.
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
from runs import RESULTS, load, save

ADAMW = ["train.optimizer=adamw"]
SIZE = ["train.group-by-length=true", "train.threads=1", "federation.evaluate-every=1"]
FAST = ["train.precision=bf16"]
FP16, ONE_BIT = ["compress.values=fp16"], ["compress.values=eden1"]
SHARED = ["compress.mask=round"]
WHOLE = ["compress.p=0"]
ROUNDS, POINT, FLOOR = 15, 0.01, 1000
FEW, MANY = 4, 10  # clients
GRIDS = {
    "weights": (5e-5, 1e-4, 2e-4, 4e-4),
    "masked": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "adapter": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
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
    for p, rotate in product((0.999, 0.99), ("", ", fixed")):
        fixed = ["compress.rotate=false"] * bool(rotate)
        found[f"mask first p={p}{rotate}"] = (f"masked {str(p)[1:]}", [*masked(p), *fixed])
    for name, settings in ADAPTERS.items():
        found[f"{name}, eden1"] = (name, [*ADAMW, *settings, *WHOLE, *ONE_BIT])
    found["eden1 p=0.997 shared"] = ("weights", [*one_bit[0.997], *SHARED])
    for p, q in product((0.997, 0.999), ("", ", curvature")):
        settings = [adamr, f"compress.p={p}", *ONE_BIT, *SHARED]
        chosen = ["compress.q=curvature"] * bool(q)
        found[f"eden1 p={p} shared, AdamR{q}"] = ("weights", [*settings, *chosen])
    for name, settings in ADAPTERS.items():
        found[f"{name}, fp16"] = (name, [*ADAMW, *settings, *WHOLE, *FP16])
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


def lr_of(row: dict[str, Any]) -> float:
    """Return the learning rate that a run had."""
    return float(row["command"].partition("train.lr=")[2].split()[0])


def forget_other_rates() -> None:
    """Drop the results of arms for which `--tune` has found another learning rate since then."""
    rows = load("few-bytes-sst2") if (RESULTS / "few-bytes-sst2.json").exists() else []
    kept = [row for row in rows if lr_of(row) == rate(arms()[row["arm"]][0])]
    if len(kept) < len(rows):
        save("few-bytes-sst2", kept)


def _run(settings: list[str], model: str, data: str, **more: Any) -> dict[str, Any]:
    private = [f"task.model={model}"] * bool(model) + [f"task.dataset={data}"] * bool(data)
    return run("configs/sst2-minilm.toml", [*settings, *SIZE, *FAST], private, **more)


def tune_one(family: str, lr: float, model: str, data: str) -> dict[str, Any]:
    """Run two rounds of a family with one learning rate, on seed 0, which holds out others."""
    _, settings = families()[family]
    short = ["federation.rounds=2", "federation.seed=0", "task.holdout=2000", f"train.lr={lr}"]
    return {"family": family, "lr": lr, **_run([*settings, *short], model, data)}


def run_one(arm: str, clients: int, seed: int, model: str, data: str) -> dict[str, Any]:
    """Run one arm; after 5 rounds it ends within a point of dense, or at the floor."""
    family, settings = arms()[arm]
    rounds, until = (5, None) if arm == "dense" else (ROUNDS, _until(clients, seed))
    more = [f"federation.rounds={rounds}", f"federation.seed={seed}", f"train.lr={rate(family)}"]
    more += [f"federation.clients={clients}"] * (clients != FEW)
    found = _run([*settings, *more], model, data, by_round=True, until=until)
    return {"arm": arm, "clients": clients, **found}


def _until(clients: int, seed: int) -> Until:
    """Return where an arm may end, which the dense arm sets; it comes first."""
    dense = _dense(load("few-bytes-sst2"), clients, seed)
    return Until(dense["final_metric"] - POINT, 5, sent(dense) / FLOOR)


def _dense(rows: list[dict[str, Any]], clients: int, seed: int) -> dict[str, Any]:
    of = ("dense", clients, seed)
    return next(row for row in rows if (row["arm"], row["clients"], row["seed"]) == of)


def best(rows: list[dict[str, Any]]) -> list[str]:
    """Return what the second pass runs: dense, four of full weights, three adapters.

    They are those that took the fewest bytes to the target with 4 clients on the first seed.
    """
    first = [row for row in rows if (row["clients"], row["seed"]) == (FEW, 1)]
    target = _dense(rows, FEW, 1)["final_metric"] - POINT
    took = {row["arm"]: found[1] for row in first if (found := to_target(row, target))}
    ranked = sorted(took.keys() - {"dense"}, key=lambda arm: took[arm])
    adapted = [arm for arm in ranked if arm.startswith(tuple(ADAPTERS))]
    return ["dense", *[arm for arm in ranked if arm not in adapted][:4], *adapted[:3]]


def sent(row: dict[str, Any]) -> int:
    """Return the bytes of a whole run, both ways, with the handshake."""
    return round((row["dense_up_bytes"] + row["dense_down_bytes"]) / row["total_ratio"])


def handshake(row: dict[str, Any]) -> int:
    """Return the bytes that were sent before the rounds."""
    return sent(row) - row["up_bytes"] - row["down_bytes"]


def to_target(row: dict[str, Any], target: float) -> tuple[int, int] | None:
    """Return the rounds and the bytes, both ways, after which a run first reached a metric."""
    by, so_far = row["by_round"], handshake(row)
    for place, metric in enumerate(by["metric"]):
        so_far += by["up_bytes"][place] + by["down_bytes"][place]
        if metric is not None and metric >= target:
            return by["round"][place], so_far
    return None


def table(rows: list[dict[str, Any]]) -> Iterable[Table]:
    """Yield, for each seed, bytes until a point below dense, and what the whole run took."""
    for clients, seed in sorted({(row["clients"], row["seed"]) for row in rows}):
        mine = [row for row in rows if (row["clients"], row["seed"]) == (clients, seed)]
        dense = _dense(rows, clients, seed)
        target = dense["final_metric"] - POINT
        title = f"SST-2, MiniLM, {clients} clients, seed {seed}: bytes until {target:.3f}"
        shown = Table(title=title)
        for column in ("", "lr", "after 5", "best", "round", "kB", "of dense"):
            shown.add_column(column, justify="left" if not column else "right")
        for row in mine:
            metrics, reached = row["by_round"]["metric"], to_target(row, target)
            cells = _cells(row, reached, sent(dense))
            lr = f"{lr_of(row):g}"
            best = max(metric for metric in metrics if metric is not None)
            shown.add_row(row["arm"], lr, f"{metrics[4]:.4f}", f"{best:.4f}", *cells)
        yield shown


def _cells(
    row: dict[str, Any], reached: tuple[int, int] | None, dense: int
) -> tuple[str, str, str]:
    """Return round, bytes and ratio at the target; ``>``: what was sent without reaching it."""
    round_, until = reached or (row["by_round"]["round"][-1], sent(row))
    sign = "" if reached else "> "
    return f"{sign}{round_}", f"{sign}{until / 1e3:,.0f}", f"{sign and '< '}1/{dense / until:,.0f}"


def main(
    model: Annotated[str, typer.Option(help="folder of the encoder; empty = hub")] = "",
    data: Annotated[str, typer.Option(help="folder with train.jsonl; empty = hub")] = "",
    tune: Annotated[bool, typer.Option("--tune", help="choose learning rates")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    second: Annotated[bool, typer.Option("--second", help="three seeds of the best")] = False,
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
        forget_other_rates()
        named = best(load("few-bytes-sst2")) if second else [*arms()]
        settings = [(FEW, 1), *[(n, seed) for n in (FEW, MANY) for seed in (1, 2, 3)] * second]
        # The dense arms set the targets of the others.
        for some in (["dense"], [arm for arm in named if arm.startswith(only)]):
            jobs = [(arm, *setting, *private) for setting in settings for arm in some]
            known_by = lambda row: (row["arm"], row["clients"], row["seed"], *private)  # noqa: E731
            complete("few-bytes-sst2", [*dict.fromkeys(jobs)], run_one, known_by, parallel)
    if not tune and (RESULTS / "few-bytes-sst2.json").exists():
        for one in table(load("few-bytes-sst2")):
            Console(width=110).print(one)


if __name__ == "__main__":
    typer.run(main)
