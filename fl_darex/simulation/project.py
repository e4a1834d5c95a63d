"""A Flower app as a folder: what its ``pyproject.toml`` says, as ``flwr run`` understands it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_darex import checks
from fl_darex.errors import ConfigError, nearest
from fl_darex.flower.private import flattened, read_project
from fl_darex.simulation.resources import GPUS_WANTED, can_be_gpus

FILE = "pyproject.toml"
_NODES = "options.num-supernodes"
_CPUS = "options.backend.client-resources.num-cpus"
_GPUS = "options.backend.client-resources.num-gpus"


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the file of an app says.

    Attributes:
        folder: Where it lies, as an absolute path.
        components: ``"module:attribute"`` of ``serverapp`` and ``clientapp``.
        config: The run configuration with flat names, as ``context.run_config`` has them.
        clients: Number of simulated nodes; None: the file does not say.
        per_client: What one client may use, as arguments of `Resources`; empty: the file does not
            say.
    """

    folder: Path
    components: Mapping[str, str]
    config: Mapping[str, bool | float | int | str]
    clients: int | None
    per_client: Mapping[str, float]

    def run_config(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with other values, as ``flwr run --run-config`` does.

        Args:
            overrides: By name, flat (``"train.lr"``) or nested.

        Raises:
            TypeError: If they are no mapping.
            ConfigError: If the file does not have a name, or a value is of a kind that Flower
                does not send.
        """
        checks.instance("run_config", overrides, Mapping, "a mapping of names to values")
        try:
            flat = flattened(overrides)
        except ValueError as error:
            raise ConfigError(f"run_config: {error}") from None
        for name in flat:
            if name not in self.config:
                known = ", ".join(sorted(self.config)) or "nothing"
                raise ConfigError(
                    f"run_config[{name!r}]: [tool.flwr.app.config] in {self.folder / FILE} has no "
                    f"such key{nearest(name, self.config)}; it has: {known}"
                )
        return {**self.config, **flat}


def read(folder: Path) -> Project:
    """Read the file of an app.

    Number of nodes and resources are those of ``[tool.flwr.federations]``, which newer apps have
    no more: of the federation that ``default`` names, or the only one.

    Raises:
        ConfigError: If there is no app in the folder, or its file cannot be used.
    """
    folder = folder.expanduser().resolve()
    file = folder / FILE
    if not file.is_file():
        found = "no such folder" if not folder.exists() else f"no {FILE} in it"
        raise ConfigError(
            f"{str(folder)!r} is no Flower app: {found}; give the folder with the app's {FILE}"
        )
    try:
        whole = read_project(folder)["tool"]["flwr"]
        config = flattened(whole["app"].get("config", {}))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be used: {_listed(error)}; flwr run needs it too"
        ) from error
    components = {half: whole["app"]["components"].get(half) for half in ("serverapp", "clientapp")}
    for half, reference in components.items():
        if not isinstance(reference, str) or not all(reference.partition(":")):
            raise ConfigError(
                f"[tool.flwr.app.components] {half} = {reference!r} in {file}: must be text, "
                "'package.module:attribute'"
            )
    clients, per_client = _federation(whole.get("federations", {}), file)
    return Project(
        folder=folder, components=components, config=config, clients=clients, per_client=per_client
    )


def _federation(tables: Mapping[str, Any], file: Path) -> tuple[int | None, dict[str, float]]:
    """Return the number of nodes and what a client may use in the federation that is meant."""
    named = {name: table for name, table in tables.items() if isinstance(table, dict)}
    chosen = tables.get("default") or (next(iter(named)) if len(named) == 1 else None)
    if chosen is None:
        return None, {}
    if chosen not in named:
        raise ConfigError(
            f"[tool.flwr.federations] default = {chosen!r} in {file}: there is no such federation; "
            f"there are: {', '.join(sorted(named)) or 'none'}"
        )
    per_client = {}
    try:
        options = flattened(named[chosen])
        clients = options.get(_NODES)
        if clients is not None:
            clients = checks.whole(_NODES, clients, "1 or more", lambda number: number >= 1)
        if _CPUS in options:
            per_client["num_cpus"] = checks.positive(_CPUS, options[_CPUS])
        if _GPUS in options:
            per_client["num_gpus"] = checks.real(_GPUS, options[_GPUS], GPUS_WANTED, can_be_gpus)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[tool.flwr.federations.{chosen}] in {file}: {error}") from None
    return clients, per_client


def _listed(error: Exception) -> str:
    """Return an error of Flower's, which lists what is wrong on lines of their own, as one line."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    return "; ".join(lines[1:] if len(lines) > 1 else lines)
