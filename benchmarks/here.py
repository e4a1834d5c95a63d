"""Many short runs without an engine: each federation in one process, one client after the other.

A run has the same bits whatever the engine, so a table of hundreds of short runs need not start
hundreds of Ray clusters. What `run` returns names the command that gives the same result.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import KEPT, RESULTS, ROOT, load, save

from fl_darex.errors import DarexError
from fl_darex.flower.ledger import Entry
from fl_darex.observers import RoundReport, RunStart
from fl_darex.observers.observer import SaveModel

BY_ROUND = ("round", "metric", "up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes")


class Enough(DarexError):
    """A run has shown what it was started for."""


@dataclass
class Until:
    """An observer that ends a run at a metric, or where it has sent too much to matter.

    Attributes:
        metric: At which it may end.
        rounds: Before which it may not.
        sent: Bytes, both ways, from which on it ends whatever its metric.
    """

    metric: float
    rounds: int
    sent: float = math.inf
    _so_far: int = 0

    def started(self, start: RunStart) -> None:
        """Do nothing: the first model is no result."""

    def replied(self, entry: Entry) -> None:
        """Do nothing: rounds are counted whole."""

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """End the run where it has had its rounds and one of the others is reached."""
        self._so_far += report.up_bytes + report.down_bytes
        reached = (report.metric or -math.inf) >= self.metric or self._so_far >= self.sent
        if report.round >= self.rounds and reached:
            raise Enough


def run(
    config: str,
    settings: list[str],
    private: list[str],
    *,
    by_round: bool = False,
    until: Until | None = None,
) -> dict[str, Any]:
    """Run a configuration in this process; see `runs.run`.

    Args:
        config: Path of the TOML file, from the repository's root.
        settings: Overrides that belong to the result.
        private: Overrides that do not change it.
        by_round: Return the metric and the bytes of each round, too.
        until: Ends the run early.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from fl_darex.clients.client_app import app
    from fl_darex.config import load_config
    from fl_darex.observers.run_folder import RunFolder
    from fl_darex.simulation import simulate_in_process
    from fl_darex.strategies.server_app import make_app

    made = load_config(ROOT / config, [*settings, *private])
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        observers = [folder, until] if until else [folder]
        with suppress(Enough):
            simulate_in_process(make_app(made, observers), app, clients=made.federation.clients)
        summary = folder.summary()
        lines = (Path(scratch) / "run" / "rounds.jsonl").read_text("utf-8").splitlines()
    result = {key: summary[key] for key in KEPT}
    if by_round:
        rounds = [json.loads(line) for line in lines]
        result["by_round"] = {key: [row[key] for row in rounds] for key in BY_ROUND}
    shown = " ".join(["fl-darex run", config, *settings])
    return {"command": shown, **result, "versions": summary["versions"]}


def untried(grid: Sequence[float], scores: Mapping[float, float]) -> list[float]:
    """Return which values of a grid to try next: its middle, then those beside the best.

    Args:
        grid: In rising order.
        scores: What was tried already, and how good it was; larger is better.
    """
    middle = len(grid) // 2
    wanted = set(grid[middle - 1 : middle + 1])
    if scores.keys() >= wanted:
        best = grid.index(max(scores, key=lambda value: scores[value]))
        wanted = set(grid[max(0, best - 1) : best + 2])
    return sorted(wanted - scores.keys())


def complete(
    name: str,
    jobs: Sequence[tuple[Any, ...]],
    run_one: Callable[..., dict[str, Any]],
    known_by: Callable[[dict[str, Any]], Hashable],
    parallel: int,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Run what the results lack, and save each row as it comes; stopped, it goes on from there.

    Args:
        name: Of the file in ``benchmarks/results``.
        jobs: Arguments of ``run_one``, in the order of their importance.
        run_one: Returns a row, in a process of its own; at the top of a module.
        known_by: Returns of a row the job that it is of.
        parallel: Runs at once.
        fresh: Forget the results that there are.
    """
    there = (RESULTS / f"{name}.json").exists() and not fresh
    rows: list[dict[str, Any]] = load(name) if there else []
    known = {known_by(row) for row in rows}
    left = [job for job in jobs if job not in known]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=spawn) as pool:
        try:
            for done in as_completed([pool.submit(run_one, *job) for job in left]):
                rows.append(done.result())
                save(name, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # nobody would save what they come to
            raise
    return rows
