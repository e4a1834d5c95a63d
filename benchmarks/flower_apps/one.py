"""All runs of one example app, in a process of their own: ``python -m flower_apps.one JOBS``.

JOBS is a JSON list; for each, ``out`` says where the result goes (OUT.json, and the last model as
OUT.npz).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from flwr.app import Array, Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_darex.flower.grids import GridView
from fl_darex.flower.ledger import Ledger, LedgerGrid
from fl_darex.flower.records import to_arrays
from fl_darex.simulation import InProcessGrid
from fl_darex.simulation.cluster import connect
from fl_darex.simulation.ray_grid import RayGrid
from fl_darex.simulation.resources import Resources

from .client import SeededApp, forget, loaded, seed


def run(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run both halves of an app; return what is to be said of the run, and the last model."""
    folder, config, clients = Path(job["folder"]), job["config"], job["clients"]
    client = SeededApp(str(folder), job["clientapp"], job["examples"])
    ledger, there, start = Ledger(), _files(folder), time.monotonic()
    forget()
    server = loaded(str(folder), job["serverapp"], job["examples"])
    with ExitStack() as stack:
        told, made = stack.enter_context(_listening()), stack.enter_context(_watching())
        grid: Grid = InProcessGrid(client, clients, config)
        if job["engine"] == "ray":
            grid = stack.enter_context(RayGrid(client, clients, run_config=config))
        if job["variant"] == "one ulp":
            grid = _OneUlp(grid)
        seed("server")
        context = Context(grid.run.run_id, 1, {}, RecordDict(), config)
        server(LedgerGrid(grid, ledger), context)
    result = next((one for one in reversed(made) if one.arrays), Result())
    model = to_arrays(result.arrays)
    said = {
        "up": sum(entry.up_bytes for entry in ledger.entries),
        "down": sum(entry.down_bytes for entry in ledger.entries),
        "failed": sum(entry.failed for entry in ledger.entries if entry.kind != "handshake"),
        "messages": len(ledger.entries),
        "seconds": round(time.monotonic() - start, 1),
        "mean": float(np.mean(np.concatenate([array.ravel() for array in model.values()]))),
        "files": sorted(_files(folder) - there),
        "log": told,
        "train": _by_round(result.train_metrics_clientapp),
        "evaluate_clients": _by_round(result.evaluate_metrics_clientapp),
        "evaluate_server": _by_round(result.evaluate_metrics_serverapp),
    }
    return said, model


class _OneUlp(GridView):
    """Moves every number of every reply by a unit in its last place."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        for reply in replies:
            for record in reply.content.array_records.values() if reply.has_content() else ():
                for name, array in to_arrays(record).items():
                    if array.dtype.kind == "f":
                        record[name] = Array(np.nextafter(array, array.dtype.type(np.inf)))
        return replies


@contextmanager
def _watching() -> Iterator[list[Result]]:
    """Hold all results that strategies make: apps keep them to themselves."""
    made: list[Result] = []
    begin = Result.__init__

    def begun(self: Result, *args: Any, **fields: Any) -> None:
        begin(self, *args, **fields)
        made.append(self)

    Result.__init__ = begun  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Result.__init__ = begin  # type: ignore[method-assign]


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Hold the warnings and errors of Flower's logger."""
    told: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(f"{record.levelname} {record.getMessage()}")

    handler = Heard(logging.WARNING)
    logging.getLogger("flwr").addHandler(handler)
    try:
        yield told
    finally:
        logging.getLogger("flwr").removeHandler(handler)


def _by_round(metrics: dict[int, Any]) -> list[dict[str, Any]]:
    return [dict(record) for _, record in sorted(metrics.items())]


def _files(folder: Path) -> set[str]:
    """Return the names of files, with N for every number: times, hosts and accuracies differ."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"\d+", "N", name) for name in found if "__pycache__" not in name}


def main() -> None:
    """Run the jobs of an app, all with one Ray."""
    owned = False
    for job in json.loads(sys.argv[1]):
        os.environ["FL_DAREX_CACHE"] = f"{job['out']}.cache"
        if job["engine"] == "ray" and not owned:
            owned = connect(Resources())
        said, arrays = run(job)
        Path(f"{job['out']}.json").write_text(json.dumps(said), "utf-8")
        np.savez(f"{job['out']}.npz", **arrays)
    if owned:
        ray.shutdown()


if __name__ == "__main__":
    main()
