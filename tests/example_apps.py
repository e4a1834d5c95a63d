"""The apps of examples/, before and after their patches."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from fl_darex.flower.ledger import Ledger, LedgerGrid
from fl_darex.simulation import InProcessGrid
from fl_darex.simulation.project import read
from fl_darex.simulation.what_to_run import asked_for

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def prepare(name: str, folder: Path, *patches: str) -> Path:
    """Copy an example into a folder and apply patches as its README says; return the copy."""
    copy = folder / name
    shutil.copytree(EXAMPLES / name, copy, ignore=shutil.ignore_patterns("__pycache__", "*.orig"))
    for patch in patches:
        done = subprocess.run(
            ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i", patch],
            cwd=copy,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{patch} does not apply to {name}: {done.stdout}{done.stderr}")
    return copy


def run_direct(app: Path, clients: int, **overrides: Any) -> tuple[Ledger, Path]:
    """Run both halves of an app in this process; return every message's bytes and the result.

    Args:
        app: A folder that `prepare` made.
        clients: How many there are, with a partition each.
        overrides: Of the app's own settings.
    """
    out = app / str(read(app).config["out"])
    settings = {"out": str(out), **overrides}
    ledger = Ledger()
    with asked_for(app, None, clients=clients, run_config=settings) as it:
        grid = InProcessGrid(it.client_app, it.clients, it.run_config)
        config = dict(it.run_config or {})
        it.server_app(
            LedgerGrid(grid, ledger), Context(grid.run.run_id, 1, {}, RecordDict(), config)
        )
    return ledger, out
