"""Settings that do nothing in a run: refused where somebody asks for them, else named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_darex.config.effects import USES
from fl_darex.config.run import RunConfig
from fl_darex.errors import ConfigError

SIMULATED = ("ray", "flower", "local")
"""The engines of ``fl-darex run``. Any other text is a run of a deployment."""

ENGINES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "federation.min-clients": ((), "deployments (flwr run): simulated clients are all there"),
    "federation.resume": ((), "flwr run; 'fl-darex run --resume DIR' is the same here"),
    "federation.timeout": (("ray", "flower"), "other engines than 'local', which waits for nobody"),
    "resources.num-cpus": (("ray", "flower"), "the engines 'ray' and 'flower'"),
    "resources.actors": (("ray",), "the engine 'ray'"),
    "resources.ray-address": (("ray",), "the engine 'ray'"),
    "resources.classes": (("ray",), "the engine 'ray'"),
}
"""The simulation engines with which a key does something, and what it is for."""


def without_effect(config: RunConfig, engine: str) -> dict[str, str]:
    """Return the keys that do nothing in a run, each with what it is for.

    Args:
        config: The run's configuration.
        engine: One of `SIMULATED`; any other text: a deployment.
    """
    idle = {key: use.words for use in USES if not use.counts(config) for key in use.keys}
    if engine in SIMULATED:
        idle |= {key: words for key, (used, words) in ENGINES.items() if engine not in used}
    return idle


def refuse_idle(config: RunConfig, keys: Iterable[str], engine: str) -> None:
    """Refuse settings that somebody asks for and that do nothing.

    Raises:
        ConfigError: If one of the keys has no effect.
    """
    idle = without_effect(config, engine)
    for key in keys:
        if key in idle:
            raise ConfigError(f"{_said(config, key, idle[key])}; leave it out")


def remarks_on_idle(config: RunConfig, keys: Iterable[str], engine: str) -> list[str]:
    """Return a line for each of the keys that has no effect."""
    idle = without_effect(config, engine)
    return [_said(config, key, idle[key]) for key in keys if key in idle]


def _said(config: RunConfig, key: str, words: str) -> str:
    return f"{key} = {config.flat()[key]!r} has no effect in this run: it is for {words}"
