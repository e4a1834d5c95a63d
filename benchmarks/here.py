"""Many short runs without an engine: each federation in one process, one client after the other.

A run has the same bits whatever the engine, so a table of hundreds of short runs need not start
hundreds of Ray clusters. What `run` returns names the command that gives the same result.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from runs import KEPT, ROOT


def run(config: str, settings: list[str], private: list[str]) -> dict[str, Any]:
    """Run a configuration in this process; see `runs.run`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from fl_darex.clients.client_app import app
    from fl_darex.config import load_config
    from fl_darex.observers.run_folder import RunFolder
    from fl_darex.simulation import simulate_in_process
    from fl_darex.strategies.server_app import make_app

    made = load_config(ROOT / config, [*settings, *private])
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / "run")
        simulate_in_process(make_app(made, [folder]), app, clients=made.federation.clients)
        summary = folder.summary()
    result = {key: summary[key] for key in KEPT}
    shown = " ".join(["fl-darex run", config, *settings])
    return {"command": shown, **result, "versions": summary["versions"]}
