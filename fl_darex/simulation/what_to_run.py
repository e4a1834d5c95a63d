"""What `simulate` is asked to run: two apps, or the folder of a Flower app that has both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import ServerApp

from fl_darex.errors import ConfigError
from fl_darex.simulation.grid import check_app
from fl_darex.simulation.own_modules import OwnApp, imported_from, load_own
from fl_darex.simulation.project import FILE, Project, read

AppFolder = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """All that an engine needs to know.

    Attributes:
        server_app: The ServerApp.
        client_app: The ClientApp, a function in its place, or ``"module:attribute"``.
        clients: Number of simulated nodes.
        run_config: What both apps see as ``context.run_config``.
        per_client: What the app's file says that one client may use, as arguments of `Resources`.
    """

    server_app: ServerApp
    client_app: ClientAppCallable | str
    clients: int
    run_config: Mapping[str, Any] | None
    per_client: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def asked_for(
    server_app: ServerApp | AppFolder,
    client_app: ClientAppCallable | str | None,
    *,
    clients: int | None,
    run_config: Mapping[str, Any] | None,
) -> Iterator[Simulation]:
    """Say what is to be simulated; an app's modules are there inside the block.

    The arguments are those of `fl_darex.simulation.simulate`, and so are the errors.
    """
    if isinstance(server_app, str | os.PathLike):
        if client_app is not None:
            raise TypeError(
                "client_app must be left out where the first argument is a folder: the app's "
                f"{FILE} names its ClientApp"
            )
        project = read(Path(server_app))
        with imported_from(project.folder):
            yield _of(project, clients, run_config)
        return
    check_app("server_app", server_app, ServerApp)
    if client_app is None or clients is None:
        missing = "client_app" if client_app is None else "clients"
        raise TypeError(
            f"{missing} is missing; only an app's folder, as first argument, can say it"
        )
    yield Simulation(
        server_app=server_app,
        client_app=client_app,
        clients=clients,
        run_config=run_config,
    )


def _of(project: Project, clients: int | None, run_config: Mapping[str, Any] | None) -> Simulation:
    nodes = project.clients if clients is None else clients
    if nodes is None:
        raise ConfigError(
            f"how many clients? {project.folder / FILE} has no [tool.flwr.federations] that says "
            "it; give clients=N"
        )
    settings = project.run_config({} if run_config is None else run_config)
    server = load_own(project.folder, *_half(project, "serverapp"), ServerApp)
    # Workers load it for themselves; what is wrong with it is to be known before they start.
    load_own(project.folder, *_half(project, "clientapp"), ClientApp)
    return Simulation(
        server_app=server,
        client_app=OwnApp(str(project.folder), project.components["clientapp"]),
        clients=nodes,
        run_config=settings,
        per_client=project.per_client,
    )


def _half(project: Project, half: str) -> tuple[str, str]:
    return f"[tool.flwr.app.components] {half}", project.components[half]
