"""Bytes both ways against accuracy: which mask and which downlink, for two kinds of fleet.

    python benchmarks/both_ways.py                                     # digits, 5 seeds
    python benchmarks/both_ways.py --model FOLDER --data FOLDER        # SST-2 with MiniLM, one seed
    python benchmarks/both_ways.py --table

Ten rounds, p = .99, fp16 values, the model before round 1 held by the clients. Each run is one
``fl-darex run``; totals include the handshake.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from runs import PRUNE_ALL, RESULTS, half_width, load, run, save

SEEDS = (1, 2, 3, 4, 5)
FLEETS = {"10 of 10": (10, 0), "10 of 40": (40, 10)}
MASKS, DOWNLINKS = ("client", "round"), ("dense", "update", "server")
# An update is the same model, up to round-off, as the dense one, and the mask hardly matters to
# server, so SST-2, at minutes a run, takes those that differ.
ON_SST2 = [("client", "dense"), ("client", "update"), ("round", "update"), ("client", "server")]
SST2 = ["federation.rounds=10", "federation.evaluate-every=10", "train.local-steps=10"]
SST2 += ["train.precision=bf16"]


def settings_of(fleet: str, mask: str, downlink: str) -> list[str]:
    """Return the overrides of one line of the table."""
    clients, sample = FLEETS[fleet]
    return [
        f"federation.clients={clients}",
        f"federation.clients-per-round={sample}",
        f"compress.mask={mask}",
        f"compress.downlink={downlink}",
        PRUNE_ALL,
    ]


def digits(fleet: str, mask: str, downlink: str, seed: int) -> dict[str, Any]:
    """Run digits once."""
    settings = ["federation.rounds=10", f"federation.seed={seed}"]
    # One worker each, so that runs share the cores; the result does not depend on it.
    private = ["resources.actors=1", "federation.evaluate-every=10"]
    settings += settings_of(fleet, mask, downlink)
    found = run("configs/quickstart.toml", settings, private)
    return {"fleet": fleet, "mask": mask, "downlink": downlink, **found}


def sst2(fleet: str, mask: str, downlink: str, private: list[str]) -> dict[str, Any]:
    """Run SST-2 once."""
    settings = [*SST2, *settings_of(fleet, mask, downlink)]
    found = run("configs/sst2-minilm.toml", settings, private)
    return {"fleet": fleet, "mask": mask, "downlink": downlink, **found}


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return accuracy and bytes of each choice; with several seeds, paired with the first line."""
    shown = Table(title=title)
    columns = ("fleet", "mask", "downlink", "accuracy", "difference (95 %)", "up", "down", "total")
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:3] else "right")
    score = {_key(row): row["final_metric"] for row in rows}
    for fleet, mask, downlink in product(FLEETS, MASKS, DOWNLINKS):
        mine = [
            r for r in rows if (r["fleet"], r["mask"], r["downlink"]) == (fleet, mask, downlink)
        ]
        if not mine:
            continue
        first = (fleet, MASKS[0], DOWNLINKS[0])
        gaps = [r["final_metric"] - score[(*first, r["seed"])] for r in mine]
        half = 0.0
        if len(gaps) > 1:
            half = half_width(gaps)
        down = sum(r["dense_down_bytes"] for r in mine) / sum(r["down_bytes"] for r in mine)
        shown.add_row(
            *(fleet, mask, downlink),
            f"{mean(r['final_metric'] for r in mine):.4f}",
            f"{mean(gaps):+.4f} ± {half:.4f}" if len(gaps) > 1 else f"{mean(gaps):+.4f}",
            f"{mean(r['up_ratio'] for r in mine):.1f}x",
            f"{down:.1f}x",
            f"{mean(r['total_ratio'] for r in mine):.1f}x",
        )
    return shown


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["fleet"], row["mask"], row["downlink"], row["seed"]


def main(
    model: Annotated[str, typer.Option(help="folder of the encoder: run SST-2 with it")] = "",
    data: Annotated[str, typer.Option(help="folder with train.jsonl of SST-2")] = "",
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    parallel: Annotated[int, typer.Option(help="digits runs at once")] = 2,
) -> None:
    """Run all choices, write the results and print the tables."""
    if model and not table_only:
        private = [f"task.model={model}", f"task.dataset={data}"]
        rows = []
        for fleet, choice in product(FLEETS, ON_SST2):
            rows.append(sst2(fleet, *choice, private))
            save("both-ways-sst2", rows)
    elif not table_only:
        jobs = [(*c, seed) for seed in SEEDS for c in product(FLEETS, MASKS, DOWNLINKS)]
        with ThreadPoolExecutor(parallel) as pool:
            save("both-ways-digits", list(pool.map(lambda job: digits(*job), jobs)))
    console = Console(width=110)
    for name, title in (("digits", "digits, 5 seeds"), ("sst2", "SST-2, MiniLM, one seed")):
        if (RESULTS / f"both-ways-{name}.json").exists():
            console.print(table(f"{title}, 10 rounds, p = .99, fp16", load(f"both-ways-{name}")))


if __name__ == "__main__":
    typer.run(main)
