"""What an engine costs per client and round: Flower's own and ours, on the same unmodified app.

    python benchmarks/engine.py                # what the results lack; every arm in a fresh process
    python benchmarks/engine.py --only tiny    # arms that begin so; --again measures them anew
    python benchmarks/engine.py --table

The app returns the ArrayRecord that it received, with one metric: it trains nothing, so all that a
round takes is the engine's, but for what the app and FedAvg do themselves. Both are timed in the
same run and taken out. ``mod``: the same app with ``mods=[DarexMod()]`` under ``DarexStrategy`` at
p = .99; all that the two do counts as the engine's. ``own``: our own ClientApp's way, too: the
weights are loaded into a torch model that the worker keeps, and read from it after no steps, which
counts as the engine's as well. Medians over rounds, the first one left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from runs import in_turn

SIZES = {"tiny": (0, 0), "22 M": (384, 6), "110 M": (768, 12)}
# Of each arm: size, clients, rounds.
ARMS = {
    "tiny, 200": ("tiny", 200, 6),
    "tiny, 1000": ("tiny", 1000, 4),
    "22 M, 20": ("22 M", 20, 4),
    "110 M, 20": ("110 M", 20, 3),
}
ENGINES = ("flower", "ray", "ray, mod", "ray, own")
KEPT: dict[str, Any] = {}  # a worker's model


def tensors(size: str) -> dict[str, Any]:
    """Return a model of about that many parameters, in tensors like BERT's."""
    hidden, layers = SIZES[size]
    rng = np.random.default_rng(0)
    if not hidden:
        return {"weight": rng.normal(size=1000).astype(np.float32)}
    shapes = {"embeddings": (30522, hidden)}
    for layer in range(layers):
        for name in ("query", "key", "value", "output"):
            shapes[f"{layer}.{name}"] = (hidden, hidden)
        shapes[f"{layer}.up"], shapes[f"{layer}.down"] = (4 * hidden, hidden), (hidden, 4 * hidden)
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def client_app(mods: list[Any], own: bool = False) -> ClientApp:
    """Return an app that sends back what it received, and how long that took it.

    Args:
        mods: Of the app.
        own: Whether it goes through a model on the way, which is not part of that time.
    """
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = through_a_model(message.content["arrays"]) if own else message.content["arrays"]
        start = time.perf_counter()
        content = RecordDict({"arrays": record})
        content["metrics"] = MetricRecord({"num-examples": 1, "seconds": 0.0})
        reply = Message(content, reply_to=message)
        content["metrics"]["seconds"] = time.perf_counter() - start
        return reply

    return app


def through_a_model(record: Any) -> ArrayRecord:
    """Load a record into this process's torch model and read it, as our own ClientApp does."""
    import torch

    from fl_darex.flower.records import to_record, view_arrays
    from fl_darex.training.exchange import Exchange

    arrays = view_arrays(record)  # of a list: their names have no dots
    if not KEPT:
        held = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        KEPT["exchange"] = Exchange(torch.nn.ParameterDict(held))
    found = KEPT["exchange"]
    found.write(arrays)
    held = found.view()
    return to_record({name: held[name] for name in arrays})


class Timed(FedAvg):
    """Flower's FedAvg, which notes how long it takes itself in each round."""

    seconds: list[float]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `FedAvg.configure_train`."""
        start = time.perf_counter()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - start]
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """See `FedAvg.aggregate_train`."""
        start = time.perf_counter()
        found = super().aggregate_train(server_round, replies)
        self.seconds[-1] += time.perf_counter() - start
        return found


def measure(engine: str, arm: str) -> dict[str, Any]:
    """Run an arm on an engine, in this process, and return milliseconds per client and round."""
    from fl_darex.clients import DarexMod
    from fl_darex.simulation import Resources, simulate
    from fl_darex.simulation.flower_engine import simulate_with_flower
    from fl_darex.strategies import DarexStrategy

    size, clients, rounds = ARMS[arm]
    with_mod, own = engine.endswith(("mod", "own")), engine.endswith("own")
    inner = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy: Any = DarexStrategy(inner, dense_below=0, replies="mean") if with_mod else inner
    stamps: list[float] = []
    handlers: list[float] = []
    server = ServerApp()

    def stamp(round_: int, arrays: ArrayRecord) -> None:
        stamps.append(time.perf_counter())

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        found = strategy.start(
            grid,
            ArrayRecord([*tensors(size).values()]),
            num_rounds=rounds,
            timeout=3600,
            evaluate_fn=stamp,
        )
        handlers.extend(found.train_metrics_clientapp[r]["seconds"] for r in range(2, rounds + 1))

    app = client_app([DarexMod()] * with_mod, own)
    run = simulate_with_flower if engine == "flower" else simulate
    run(server, app, clients=clients, resources=Resources())
    workers = os.cpu_count() or 1
    walls = [1e3 * (b - a) / clients for a, b in pairwise(stamps[1:])]
    own = [1e3 * seconds / clients for seconds in inner.seconds[1:]]
    apps = [1e3 * seconds / workers for seconds in handlers]
    overhead = [wall - a - b for wall, a, b in zip(walls, own, apps, strict=True)]
    return {
        "arm": arm,
        "engine": engine,
        "clients": clients,
        "rounds": rounds,
        "wall_ms": round(median(walls), 4),
        "fedavg_ms": round(median(own), 4),
        "app_ms": round(median(apps), 4),
        "overhead_ms": round(median(overhead), 4),
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return milliseconds of each engine and how many times less ours take."""
    shown = Table(title="per client and round, ms, and Flower's over ours")
    for column in ("model, clients", "engine", "wall", "FedAvg", "app", "overhead", "ratio"):
        shown.add_column(
            column, justify="left" if column in ("model, clients", "engine") else "right"
        )
    for row in rows:
        flower = [r for r in rows if (r["arm"], r["engine"]) == (row["arm"], "flower")]
        ratio = f"{flower[0]['overhead_ms'] / row['overhead_ms']:.1f}" if flower else ""
        cells = (f"{row[key]:.2f}" for key in ("wall_ms", "fedavg_ms", "app_ms", "overhead_ms"))
        shown.add_row(row["arm"], row["engine"], *cells, ratio)
    return shown


def main(
    only: Annotated[str, typer.Option(help="arms that begin so")] = "",
    again: Annotated[bool, typer.Option("--again", help="measure what there is anew")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    one: Annotated[str, typer.Option(help="measure one engine here and print JSON")] = "",
) -> None:
    """Measure each arm on each engine in turn, write the results and print the table."""
    if one:
        sys.stdout.write("\n" + json.dumps(measure(one, only)) + "\n")
        return
    arms = [arm for arm in ARMS if arm.startswith(only) and not table_only]
    rows = in_turn(__file__, ENGINES, arms, "engine", again)
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
