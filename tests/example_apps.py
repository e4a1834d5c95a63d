"""The apps of examples/, before and after their patches."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.supercore.object_ref import load_app

from fl_darex.flower.ledger import Ledger, LedgerGrid
from fl_darex.simulation import InProcessGrid

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
    settings = tomllib.loads((app / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    out = app / str(settings["config"]["out"])
    config = {**settings["config"], "out": str(out), **overrides}
    forget(app)
    server, client = (
        load_app(settings["components"][half], ImportError, app)
        for half in ("serverapp", "clientapp")
    )
    grid = InProcessGrid(client, clients, config)
    ledger = Ledger()
    server(LedgerGrid(grid, ledger), Context(grid.run.run_id, 1, {}, RecordDict(), config))
    return ledger, out


def forget(app: Path) -> None:
    """Let Python import an app's modules from its folder, and no other copy's."""
    package = app.name.replace("-", "_")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.path[:] = [str(app), *(path for path in sys.path if Path(path).name != app.name)]
