"""Paths among settings, which other processes read in other folders."""

from __future__ import annotations

from pathlib import Path

from fl_darex.config.run import RunConfig


def resolved(config: RunConfig) -> RunConfig:
    """Make relative paths absolute: workers and nodes run in other folders."""
    task = config.task
    paths = {
        key: str(Path(value).expanduser().resolve())
        for key, value in (("model", task.model), ("dataset", task.dataset))
        if value and Path(value).expanduser().exists()
    }
    return config.model_copy(update={"task": task.model_copy(update=paths)})
