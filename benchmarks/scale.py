"""How cost and memory grow with the clients of a round, and with rounds.

    python benchmarks/scale.py                # what the results lack; every arm in a fresh process
    python benchmarks/scale.py --only "tiny"  # arms that begin so; --again measures them anew
    python benchmarks/scale.py --table

The app of ``benchmarks/engine.py``: 1,000 parameters, trains nothing. Plain: FedAvg on dense
replies. ``mod``: with ``DarexMod`` under ``DarexStrategy`` at p = .99. Milliseconds are the wall
time of a round by its clients, median over rounds but the first; memory is what the driver holds
(its resident set, without its libraries' files) after each round, and at most.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from engine import client_app, tensors
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from runs import in_turn

# Of each arm: clients, rounds.
ARMS = {
    "100 clients": (100, 6),
    "1,000 clients": (1000, 4),
    "10,000 clients": (10_000, 3),
    "100,000 clients": (100_000, 2),
    "200 rounds of 2,000": (2000, 200),
}
KINDS = ("plain", "mod")
MB = 1e6


def held() -> float:
    """Return MB of memory that this process alone has (Linux)."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yield a list whose only item is the most that this process held meanwhile, in MB."""
    most, over = [held()], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            most[0] = max(most[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def measure(kind: str, arm: str) -> dict[str, Any]:
    """Run an arm in this process and return what a client took, and what the driver held."""
    from fl_darex.clients import DarexMod
    from fl_darex.simulation import simulate
    from fl_darex.strategies import DarexStrategy

    clients, rounds = ARMS[arm]
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    with_mod = kind == "mod"
    strategy: Any = DarexStrategy(inner, dense_below=0, replies="mean") if with_mod else inner
    stamps: list[float] = []
    after: list[float] = []
    server = ServerApp()

    def stamp(round_: int, arrays: ArrayRecord) -> None:
        gc.collect()
        stamps.append(time.perf_counter())
        after.append(held())

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(
            grid,
            ArrayRecord([*tensors("tiny").values()]),
            num_rounds=rounds,
            timeout=36_000,
            evaluate_fn=stamp,
        )

    with watched() as most:
        simulate(server, client_app([DarexMod()] * with_mod), clients=clients)
    walls = [1e3 * (b - a) / clients for a, b in pairwise(stamps[1:])]
    return {
        "arm": arm,
        "kind": kind,
        "clients": clients,
        "rounds": rounds,
        "wall_ms": round(median(walls), 3),
        "start_mb": round(after[0]),
        "after_first_mb": round(after[1]),
        "after_last_mb": round(after[-1]),
        "most_mb": round(most[0]),
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return what a client takes and what the driver holds, in each arm."""
    shown = Table(title="1,000 parameters a client: ms per client and round; MB of the driver")
    columns = ("", "kind", "ms", "at start", "after round 1", "after the last", "at most")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("", "kind") else "right")
    for row in rows:
        megabytes = (row["start_mb"], row["after_first_mb"], row["after_last_mb"], row["most_mb"])
        cells = (f"{row['wall_ms']:.2f}", *(f"{number:,}" for number in megabytes))
        shown.add_row(row["arm"], row["kind"], *cells)
    return shown


def main(
    only: Annotated[str, typer.Option(help="arms that begin so")] = "",
    again: Annotated[bool, typer.Option("--again", help="measure what there is anew")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    one: Annotated[str, typer.Option(help="measure one kind here and print JSON")] = "",
) -> None:
    """Measure each arm, write the results and print the table."""
    if one:
        sys.stdout.write("\n" + json.dumps(measure(one, only)) + "\n")
        return
    arms = [arm for arm in ARMS if arm.startswith(only) and not table_only]
    rows = in_turn(__file__, KINDS, arms, "kind", again)
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
