"""What a run is, and which settings may change when it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fl_darex.config.run import RunConfig
from fl_darex.errors import ConfigError

FREE = (
    *("resources.num-cpus", "resources.actors", "resources.ray-address"),
    *("federation.timeout", "federation.min-clients", "federation.min-replies"),
    *("federation.checkpoint-every", "federation.resume"),
)
"""Keys that say where and how a run is done; the others say what it is."""

_ROUNDS = "federation.rounds"


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the settings that must be the same when a run goes on, by key."""
    free = (*FREE, _ROUNDS) if _may_be_longer(config) else FREE
    return {key: value for key, value in config.flat().items() if key not in free}


def refuse_changes(config: RunConfig, changed: Iterable[str]) -> None:
    """Refuse overrides with which a run would not be the one that it was.

    Args:
        config: The run's configuration.
        changed: Keys that somebody sets anew.

    Raises:
        ConfigError: If one of them may not change.
    """
    for key in changed:
        if key == _ROUNDS and not _may_be_longer(config):
            raise ConfigError(
                f"{key} cannot change when this run goes on: the learning rate of each step "
                "depends on it (train.schedule, train.warmup); begin a new run with --out"
            )
        if key not in (*FREE, _ROUNDS):
            allowed = ", ".join(one for one in (*FREE, _ROUNDS) if one != "federation.resume")
            raise ConfigError(
                f"{key} is part of what the run is and cannot change when it goes on; allowed: "
                f"{allowed}; or begin a new run with --out"
            )


def _may_be_longer(config: RunConfig) -> bool:
    """Return whether a longer run is the same one as far as a shorter one goes."""
    return config.train.schedule == "constant" and not config.train.warmup
