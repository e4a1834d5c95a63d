"""Two plain Flower apps before and after the two lines, on a real SuperLink with two SuperNodes.

    python benchmarks/plug_in.py             # runs what the results lack
    python benchmarks/plug_in.py --table     # prints the table of the committed results

The apps are those of ``examples/``: MLPs of 5.5 million float32 parameters on digits, ten rounds.
"plain" is the app as it is, "two lines" the app after ``darex.patch`` (p = .99, fp16 and
``downlink="update"``, the defaults), "held" after ``base.patch``, too: clients hold the initial
model; "eden1" is one bit a number both ways, "one mask" ``mask="round"``. All processes are
Flower's own, on loopback. Bytes are counted twice: by SuperLink (``flwr list``), which counts
objects and the messages that announce them, and by a TCP proxy between SuperNodes and SuperLink,
which sees everything: heads of requests (about 900 bytes each), polls, heartbeats and the app's
bundle. Both clients train and evaluate in each round, Flower's default.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from runs import RESULTS, ROOT, load, save

from fl_darex.observers.summary import versions

sys.path.insert(0, str(ROOT / "tests"))

NODES, ROUNDS, TIMEOUT = 2, 10, 1800.0
HELD = ["darex.patch", "base.patch"]
# The patches, and what the strategy is told besides.
VARIANTS = {
    "plain": ([], ""),
    "two lines": (["darex.patch"], ""),
    "held": (HELD, ""),
    "held, eden1": (HELD, 'values="eden1"'),
    "held, eden1, one mask": (HELD, 'values="eden1", mask="round"'),
}
CASES = [
    *(("torch", variant) for variant in VARIANTS),
    *(("sklearn", variant) for variant in ("plain", "two lines")),
]


def accuracy(name: str, out: Path) -> tuple[float, int]:
    """Return a final model's share of right answers on all clients' tests, and its size."""
    sys.path.insert(0, str(ROOT / "examples" / f"{name}-app"))
    if name == "torch":
        import torch
        from torch_app import task

        model: Any = task.Net()
        model.load_state_dict(torch.load(out))
        tests = [task.load_data(node, NODES, 32)[1] for node in range(NODES)]
        sizes = [len(test.dataset) for test in tests]
        parameters = sum(p.numel() for p in model.parameters())
    else:
        from sklearn_app import task

        model = task.make_model(0.1, 32)
        arrays = list(np.load(out).values())
        task.set_arrays(model, arrays)
        tests = [task.load_data(node, NODES)[1] for node in range(NODES)]
        sizes = [len(test[0]) for test in tests]
        parameters = sum(array.size for array in arrays)
    scores = [task.test(model, test)[1] for test in tests]
    return float(np.average(scores, weights=sizes)), parameters


def tell(file: Path, settings: str) -> None:
    """Give the strategy of a patched app further arguments."""
    before = file.read_text("utf-8")
    after = re.sub(r"(DarexStrategy\(.*\))\)$", rf"\1, {settings})", before, flags=re.MULTILINE)
    if after == before:
        raise RuntimeError(f"{file.name} makes no DarexStrategy in one line")
    file.write_text(after, "utf-8")


def run(name: str, variant: str, rounds: int) -> dict[str, Any]:
    """Run one app to its end on a deployment of its own."""
    from example_apps import prepare
    from superlink import deployment

    folder = Path(tempfile.mkdtemp(prefix="plug-in-"))
    out = folder / ("model.pt" if name == "torch" else "model.npz")
    patches, settings = VARIANTS[variant]
    app = prepare(f"{name}-app", folder, *patches)
    if settings:
        tell(app / f"{name}_app" / "server_app.py", settings)
    start = time.monotonic()
    config = {"num-server-rounds": rounds, "out": str(out)}
    with deployment(folder, NODES) as (flower, proxy):
        listed = flower.run(app, TIMEOUT, **config)
    score, parameters = accuracy(name, out)
    shutil.rmtree(folder)
    traffic = listed["network-traffic"]
    return {
        "app": name,
        "variant": variant,
        "parameters": parameters,
        "rounds": rounds,
        "supernodes": NODES,
        "accuracy": score,
        "superlink": {"up": traffic["inbound-bytes"], "down": traffic["outbound-bytes"]},
        "wire": {"up": proxy.up, "down": proxy.down},
        "requests": proxy.requests.total(),
        "seconds": round(time.monotonic() - start),
        "versions": versions(),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return bytes and ratios to the plain app, by both counters."""
    shown = Table(title="ten rounds, two SuperNodes, p = .99; MB and ratio to the plain app")
    for column in ("app", "", "accuracy", "counted by", "up", "down", "total"):
        shown.add_column(column, justify="right" if column in ("up", "down", "total") else "left")
    for line in lines(rows):
        shown.add_row(*line, end_section=line[3] == "proxy")
    return shown


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table."""
    found = []
    for row in rows:
        plain = next(r for r in rows if _case(r) == (row["app"], "plain"))
        for counter, name in (("superlink", "SuperLink"), ("wire", "proxy")):
            mine, theirs = _sums(row[counter]), _sums(plain[counter])
            cells = [f"{m / 1e6:,.2f} ({t / m:,.0f}x)" for m, t in zip(mine, theirs, strict=True)]
            found.append([*_case(row), f"{row['accuracy']:.3f}", name, *cells])
    return found


def _case(row: dict[str, Any]) -> tuple[str, str]:
    return row["app"], row["variant"]


def _sums(counted: dict[str, int]) -> tuple[int, int, int]:
    return counted["up"], counted["down"], counted["up"] + counted["down"]


def main(
    rounds: Annotated[int, typer.Option(help="fewer for a trial, which is not saved")] = ROUNDS,
    only: Annotated[str, typer.Option(help="one app: torch or sklearn")] = "",
    again: Annotated[bool, typer.Option(help="run what the results already have, too")] = False,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Run all cases that the results lack, write the results and print the table."""
    known = (RESULTS / "plug-in.json").exists() and not again and rounds == ROUNDS
    rows = load("plug-in") if known or table_only else []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for case in [] if table_only else CASES:
        if case in map(_case, rows) or (only and case[0] != only):
            continue
        rows.append(run(*case, rounds))
        rows.sort(key=lambda row: CASES.index(_case(row)))
        if rounds == ROUNDS:
            save("plug-in", rows)
    Console(width=130).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
