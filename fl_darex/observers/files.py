"""The files of a run folder, and what of them is kept when a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.files.lines import cut, kept_size

CONFIG, SUMMARY = "config.toml", "summary.json"
ROUNDS, CLIENTS = "rounds.jsonl", "clients.jsonl"
MODEL, UNFINISHED_MODEL = "model", "model.part"

TRACEBACK = "traceback.txt"
"""Where in the folder of a failed run the whole error is."""

CHECKPOINT = "checkpoint"
"""The folder in it for checkpoints."""


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary as it was written last; empty where there is none."""
    path = folder / SUMMARY
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def check_run(folder: Path) -> None:
    """Refuse a folder without a run.

    Raises:
        ConfigError: If there is none.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{str(folder)!r} is no run folder: it has no {CONFIG}")


def check_stopped(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return the summary of a run that can go on.

    Args:
        folder: Its folder.
        config: The configuration to go on with.

    Raises:
        ConfigError: If it has no more rounds to do, or keeps no checkpoints.
    """
    summary, named = read_summary(folder), f"the run in {str(folder)!r}"
    if not config.federation.checkpoint_every:
        raise ConfigError(
            f"{named} keeps no checkpoints (federation.checkpoint-every = 0); begin a new one"
        )
    if summary.get("status") == "finished":
        done = int(summary["rounds"])
        if config.federation.rounds <= done:
            raise ConfigError(
                f"{named} has finished, after {done} rounds; for a longer one set "
                f"federation.rounds above {done}"
            )
        if not has_checkpoint(folder):
            raise ConfigError(f"{named} has finished and left no checkpoint; begin a new one")
    return summary


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run has left a checkpoint."""
    return any((folder / CHECKPOINT).glob("*.darex"))


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of a run's logs, once the disk has them all."""
    return {name: kept_size(folder / name) for name in (ROUNDS, CLIENTS)}


def cut_back(folder: Path, kept: Mapping[str, int]) -> None:
    """Take away what a stopped process has written beyond what is kept.

    Args:
        folder: The run's.
        kept: What `sizes` returned then; without a name nothing of a log is kept.

    Raises:
        OSError: If a log is shorter than that, or something cannot be removed.
    """
    for name in (ROUNDS, CLIENTS):
        cut(folder / name, kept.get(name, 0))
    (folder / TRACEBACK).unlink(missing_ok=True)
    for name in (MODEL, UNFINISHED_MODEL):
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def taken(path: Path) -> str:
    """Return why no new run can have a folder, and what to do."""
    way_out = "choose another name with --out, or remove it"
    if (path / CONFIG).is_file():
        return f"--out {str(path)!r} holds a run already; {way_out}"
    return f"--out {str(path)!r} exists and is not an empty folder; {way_out}"
