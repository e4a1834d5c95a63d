"""A round of a hundred clients on the server: time and memory, ours beside Flower's FedAvg.

    python benchmarks/aggregation.py            # runs everything, writes benchmarks/results/
    python benchmarks/aggregation.py --table    # prints the table of the committed results

BERT-base, p = .99, fp16, one thread. Flower's FedAvg is given the dense replies of the same clients
(they would not fit into memory: every fourth reply is the same object, which saves it nothing).
Each row has a process of its own; they take turns; times are medians. Memory is what the process
holds at most beyond the model and the replies that it was given, in models of float32 (Linux).
"round" is all of `aggregate_train`: ours then also makes and applies the packet for the way down.
FedAvg's is its adding, which takes its turns with the others' adding.
"compiled" is with Numba (`pip install 'fl-darex[fast]'`), loaded before; all others are without.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from models import MODELS, Arrays, entries
from rich.console import Console
from rich.table import Table
from runs import load, save

from fl_darex import compiled
from fl_darex.compression import METHODS
from fl_darex.compression.weighted_sum import weighted_mean
from fl_darex.delta import Delta
from fl_darex.flower.records import packet_record, to_record, view_arrays
from fl_darex.flower.roster import PARTITION_KEY, answer
from fl_darex.observers.summary import versions
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies import DarexStrategy

MODEL, P, DISTINCT, TURNS = "BERT-base", 0.99, 4, 5
LABELS = {
    "dense": "FedAvg, dense replies",
    "client": "a mask each",
    "client, compiled": "a mask each, compiled",
    "round": "one mask",
}
PARTS = ("accumulate", "round")
steps: dict[str, Callable[[], Any]] = {}  # of the one row that a process measures


def clients(count: int) -> InProcessGrid:
    """Return nodes that tell their partition and nothing else."""
    return InProcessGrid(lambda m, context: answer(m, context.node_config[PARTITION_KEY]), count)


def model(seed: int = 0, around: Arrays | None = None) -> Arrays:
    """Return random tensors, or tensors near others."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in MODELS[MODEL].items():
        found[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-3)
        if around is not None:
            found[name] += around[name]
    return found


def fedavg(count: int) -> FedAvg:
    """Return a FedAvg that asks every client."""
    made = FedAvg(min_train_nodes=count, min_available_nodes=count)
    made.fraction_evaluate = 0.0
    return made


def reply(question: Message, record: ArrayRecord, index: int) -> Message:
    """Return a client's reply with its record and weight."""
    metrics = MetricRecord({"num-examples": 100 + index})
    content = RecordDict({"arrays": record, "metrics": metrics})
    return Message(content, reply_to=question)


def dense_round(count: int) -> Callable[[], Any]:
    """Return Flower's aggregation of dense replies, which is all of its round."""
    base = model()
    arrays = to_record(base)
    records = [to_record(model(i + 1, base)) for i in range(DISTINCT)]
    del base
    strategy = fedavg(count)
    asked = list(strategy.configure_train(1, arrays, ConfigRecord(), clients(count)))
    replies = [reply(m, records[i % DISTINCT], i) for i, m in enumerate(asked)]

    def whole() -> Any:
        return strategy.aggregate_train(1, replies)

    return whole


def packed_round(count: int, mask: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return our accumulation alone, and the whole round through FedAvg."""
    arrays = to_record(model())
    strategy, nodes = DarexStrategy(fedavg(count), p=P, mask=mask, dense_below=0), clients(count)
    with strategy.running(nodes):
        asked = list(strategy.configure_train(1, arrays, ConfigRecord(), nodes))
    replies = []
    base = view_arrays(arrays)
    for first in range(DISTINCT):
        delta = Delta(model(first + 1, base), base)
        for index in range(first, count, DISTINCT):
            told = strategy._asked[asked[index].metadata.dst_node_id]
            packet, _ = METHODS["dare"].compress(delta, told.terms)
            replies.append(reply(asked[index], packet_record(packet or b""), index))
    usable = strategy._intake.usable(replies, strategy._asked).usable
    sent, parts = usable[0].sent, [reply.part for reply in usable]

    def accumulate() -> Any:
        return weighted_mean(sent.arrays, sent.layout, parts)

    return accumulate, lambda: strategy.aggregate_train(1, replies)


def prepare(kind: str, count: int) -> dict[str, Any]:
    """Make ready what this process measures, and measure its memory."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    mask, _, with_numba = kind.partition(", ")
    if not with_numba:
        sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed
    elif compiled.load(1.0) is None:
        raise SystemExit("numba is not installed: pip install 'fl-darex[fast]'")
    found = [dense_round(count)] if kind == "dense" else packed_round(count, mask)
    steps.update(zip(PARTS, found, strict=False))
    row: dict[str, Any] = {"kind": kind, "clients": count}
    for name, step in steps.items():
        row[f"{name}_models"] = round(peak(step) / (4 * entries(MODEL)), 3)
    return row


def turn(name: str) -> float:
    """Return the time of one step of this process."""
    return seconds(steps[name])


def measure(count: int) -> list[dict[str, Any]]:
    """Measure all rows of so many clients, in turns."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {kind: stack.enter_context(context.Pool(1)) for kind in LABELS}
        rows = [pool.apply(prepare, (kind, count)) for kind, pool in pools.items()]
        for name in PARTS:
            taken: dict[str, list[float]] = {
                row["kind"]: [] for row in rows if f"{name}_models" in row
            }
            for _ in range(TURNS):
                for kind, spent in taken.items():
                    spent.append(pools[kind].apply(turn, (name,)))
            for row in rows:
                if row["kind"] in taken:
                    row[f"{name}_seconds"] = round(median(taken[row["kind"]]), 3)
    for unit in ("models", "seconds"):  # no part of its own
        rows[0][f"{PARTS[1]}_{unit}"] = rows[0][f"{PARTS[0]}_{unit}"]
    return rows


def peak(step: Callable[[], Any]) -> int:
    """Return the bytes that the process holds at most during a step, beyond those before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what was freed before would hide a part
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    result = step()
    found = _status("VmHWM") - before
    del result
    return found


def seconds(step: Callable[[], Any]) -> float:
    """Return the time of a step in a process that took it before."""
    start = time.perf_counter()
    result = step()
    found = time.perf_counter() - start
    del result
    return found


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def table(rows: list[dict[str, Any]]) -> Table:
    """Return time and memory of each kind of round."""
    shown = Table(title=f"{MODEL}, {entries(MODEL) / 1e6:.1f} M, p = {P}, fp16, one thread")
    columns = ("", "clients", "adding, s", "models", "faster", "round, s", "models", "faster")
    for column in columns:
        shown.add_column(column, justify="left" if not column else "right")
    for row in rows:
        peer = next(r for r in rows if r["kind"] == "dense" and r["clients"] == row["clients"])
        cells = [LABELS[row["kind"]], str(row["clients"])]
        for part in PARTS:
            seconds = row[f"{part}_seconds"]
            cells += [f"{seconds:.2f}", f"{row[f'{part}_models']:.2f}"]
            cells.append("" if row is peer else f"{peer[f'{part}_seconds'] / seconds:.1f}x")
        shown.add_row(*cells)
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Measure all rounds, write the results and print the table."""
    if not table_only:
        rows = [row for count in (10, 100) for row in measure(count)]
        found = versions() | {"numba": metadata.version("numba")}
        save("aggregation", {"rows": rows, "versions": found})
    Console(width=110).print(table(load("aggregation")["rows"]))


if __name__ == "__main__":
    typer.run(main)
