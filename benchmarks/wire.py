"""What an update costs on the wire: bytes, time and memory, ours beside what people use today.

    python benchmarks/wire.py                      # runs everything, writes benchmarks/results/
    python benchmarks/wire.py --mergekit FOLDER    # mergekit from a checkout
    python benchmarks/wire.py --table              # prints the table of the committed results

It needs `pip install -e '.[bench]' -c constraints.txt`. One thread; all ways take turns in one
process, and times are medians of their turns, so compare ratios; the second table measures the
bare cost and mergekit apart. Memory is what the process held
at most beyond what it held before the step (Linux).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flwr.app import Message, MetricRecord, RecordDict
from models import MODELS, base_and_tuned, entries
from rich.console import Console
from rich.table import Table
from runs import load, save
from wire_ways import Way, all_ways, bare, mergekit_dare, seeded, versions

from fl_darex.flower.private import adopt_run, number
from fl_darex.flower.records import packet_record, to_record
from fl_darex.flower.sizes import message_bytes

RATES = (0.9, 0.99, 0.999)


def reply_bytes(record: Any) -> int:
    """Return what a whole reply of a client weighs in a deployment."""
    metrics = MetricRecord({"num-examples": 200, "loss": 0.123456, "pull": 0.001})
    question = Message(RecordDict(), 1 << 62, "train")
    number(question, "0" * 64)
    content = RecordDict({"arrays": record, "metrics": metrics})
    return message_bytes(Message(content, reply_to=question))


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a step takes, and its result."""
    gc.collect()
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def peak(step: Callable[[], Any]) -> int:
    """Return the bytes that the process holds at most during a step, beyond those before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    result = step()
    found = _status("VmHWM") - before
    del result
    return max(0, found)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def measure(model: str, p: float, turns: int) -> list[dict[str, Any]]:
    """Measure all ways for one model and one p."""
    base, tuned = base_and_tuned(model)
    ways = all_ways(base, tuned, p)
    data = {way.name: way.encode() for way in ways}
    steps: dict[tuple[str, str], Callable[[], Any]] = {}
    for way in ways:
        steps |= {
            (way.name, "encode"): way.encode,
            (way.name, "decode"): lambda way=way: way.decode(data[way.name]),
            (way.name, "add"): lambda way=way: way.add(data[way.name]),
        }
    prune, scatter = bare(base, tuned, p)
    steps |= {("bare cost", "encode"): prune, ("bare cost", "add"): scatter}
    steps["mergekit DARE operation", "encode"] = mergekit_dare(base, tuned, p)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(turns):
        for key, step in steps.items():
            times[key].append(timed(step)[0])
    memory = {key: peak(step) for key, step in steps.items()}
    dense = reply_bytes(to_record(tuned))
    rows = []
    for name in dict.fromkeys(name for name, _ in steps):
        way = next((way for way in ways if way.name == name), None)
        row = {"model": model, "p": p, "way": name, "seconds": {}, "memory": {}}
        for step in ("encode", "decode", "add"):
            if (name, step) in times:
                row["seconds"][step] = round(median(times[name, step]), 5)
                row["memory"][step] = memory[name, step]
        rows.append(row | _weights(way, data.get(name), dense, model, p))
    return rows


def _weights(way: Way | None, data: bytes | None, dense: int, model: str, p: float) -> dict:
    """Return the bytes of a reply, and how they compare."""
    if way is None or data is None:
        return {}
    ours = way.name.startswith("fl-darex")
    message = reply_bytes(packet_record(data)) if ours else len(data)
    if way.name.startswith("numpy dense"):
        message = dense
    found: dict[str, Any] = {"bytes": message, "dense_bytes": dense}
    if ours and way.wide is not None:
        count = int(np.frombuffer(data[76:84], "<u8")[0])
        ideal = count * way.wide
        if "listed" in way.name:
            numel = entries(model)
            share = count / numel
            bits = -np.log2(share) - (1 - share) / share * np.log2(1 - share)
            ideal += count * bits / 8
        found |= {"survivors": count, "ideal_bytes": ideal}
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """Return one line for each model, p and way."""
    shown = Table(title="one update, one thread; times in ms, memory in MB")
    for column in ("", "bytes", "dense /", "/ ideal", "encode", "decode", "decode+add", "memory"):
        shown.add_column(column, justify="left" if not column else "right", no_wrap=True)
    last = None
    for row in rows:
        if last != (row["model"], row["p"]):
            last = (row["model"], row["p"])
            shown.add_section()
            count = f"{entries(row['model']) / 1e6:.1f} M"
            shown.add_row(f"[bold]{row['model']} ({count}), p = {row['p']:g}")
        size = row.get("bytes")
        ideal = row.get("ideal_bytes")
        times = [row["seconds"].get(step) for step in ("encode", "decode", "add")]
        shown.add_row(
            row["way"],
            f"{size:,}" if size else "",
            f"{row['dense_bytes'] / size:,.1f}x" if size else "",
            f"{size / ideal:.4f}" if ideal else "",
            *("" if one is None else f"{one * 1e3:,.1f}" for one in times),
            f"{max(row['memory'].values()) / 1e6:,.0f}",
        )
    return shown


def rival(model: str, p: float, turns: int) -> dict[str, float]:
    """Return the medians of ours, the bare cost and mergekit, taking turns in a fresh process.

    Beside all other ways, memory that they freed makes mergekit faster than it is on its own.
    """
    torch.set_num_threads(1)
    base, tuned = base_and_tuned(model)
    ours = seeded("fp16", base, tuned, p)
    prune, scatter = bare(base, tuned, p)
    data = ours.encode()
    steps = {
        "prune + encode": ours.encode,
        "bare prune": prune,
        "mergekit": mergekit_dare(base, tuned, p),
        "decode + add": lambda: ours.add(data),
        "scatter-add": scatter,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns + 1):
        for name, step in steps.items():
            times[name].append(timed(step)[0])
    return {"model": model, "p": p} | {n: round(median(t[1:]), 5) for n, t in times.items()}


def rivals(turns: int) -> list[dict[str, float]]:
    """Measure each model and p in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = []
    for model in MODELS:
        for p in RATES:
            with context.Pool(1) as pool:
                found.append(pool.apply(rival, (model, p, turns)))
    return found


def limits(rows: list[dict[str, Any]]) -> Table:
    """Return the ratios to what cannot be saved, and to mergekit."""
    shown = Table(title="fl-darex fp16 in a process with these alone, taking turns; ms and ratios")
    columns = ("", "prune + encode", "bare", "ratio", "mergekit DARE", "ratio")
    for column in (*columns, "decode + add", "scatter-add", "ratio"):
        shown.add_column(column, justify="left" if not column else "right")
    for row in rows:
        encode, add = row["prune + encode"], row["decode + add"]
        shown.add_row(
            f"{row['model']}, p = {row['p']:g}",
            f"{encode * 1e3:.1f}",
            f"{row['bare prune'] * 1e3:.1f}",
            f"{encode / row['bare prune']:.2f}",
            f"{row['mergekit'] * 1e3:,.0f}",
            f"{row['mergekit'] / encode:.0f}x",
            f"{add * 1e3:.1f}",
            f"{row['scatter-add'] * 1e3:.1f}",
            f"{add / row['scatter-add']:.2f}",
        )
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    mergekit: Annotated[str, typer.Option(help="folder of a mergekit checkout")] = "",
    turns: Annotated[int, typer.Option(help="times that each step is taken")] = 5,
) -> None:
    """Measure all ways, write the results and print the tables."""
    console = Console(width=120)
    if not table_only:
        if mergekit:
            sys.path.insert(0, mergekit)
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", message="Sparse CSR")
        adopt_run("benchmark")
        rows = [row for model in MODELS for p in RATES for row in measure(model, p, turns)]
        found = {"ways": rows, "rivals": rivals(turns), "versions": json.loads(versions())}
        save("wire", found)
    results: Any = load("wire")
    console.print(table(results["ways"]))
    console.print(limits(results["rivals"]))
    console.print(results["versions"])


if __name__ == "__main__":
    typer.run(main)
