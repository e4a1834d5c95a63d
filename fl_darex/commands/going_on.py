"""``--resume``: what a stopped run goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_darex.commands.settings import Engine, read_settings
from fl_darex.config import RunConfig, read_overrides
from fl_darex.config.going_on import refuse_changes
from fl_darex.errors import ConfigError
from fl_darex.observers.files import CONFIG, check_run, has_checkpoint, read_summary


def stopped_run(
    folder: Path, changes: Sequence[str], engine: Engine | None, out: Path | None
) -> tuple[RunConfig, Engine, list[str]]:
    """Return a stopped run's configuration, its engine, and what a person should know of it.

    Args:
        folder: Its run folder.
        changes: Settings to change, as ``key=value``.
        engine: The one that was asked for; None: as before.
        out: What ``--out`` says.

    Raises:
        ConfigError: If there is no run in it, or something would change what the run is.
    """
    check_run(folder)
    if out is not None:
        raise ConfigError(f"--resume goes on in its own folder, {str(folder)!r}; leave out --out")
    if odd := [text for text in changes if "=" not in text]:
        raise ConfigError(
            f"--resume takes its configuration from {str(folder / CONFIG)!r}, not from {odd[0]!r}; "
            "leave that out"
        )
    before = str(read_summary(folder).get("engine") or Engine.ray)
    engine = engine or (Engine(before) if before in [*Engine] else Engine.ray)
    config, remarks = read_settings(folder / CONFIG, changes, engine)
    refuse_changes(config, read_overrides(changes))
    if not has_checkpoint(folder):
        remarks.append(f"the run in {str(folder)!r} has no checkpoint yet and begins anew")
    return config, engine, remarks


def is_over(folder: Path, config: RunConfig) -> bool:
    """Return whether a run has done all its rounds."""
    summary = read_summary(folder)
    done = int(summary.get("rounds", 0))
    return summary.get("status") == "finished" and done == config.federation.rounds
