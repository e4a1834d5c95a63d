"""`RayGrid`: Flower's Grid on Ray actors, for any ServerApp and any ClientApp; `simulate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import WARNING
from types import TracebackType
from typing import Any, Self

import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log
from flwr.serverapp import ServerApp

from fl_darex import checks
from fl_darex.simulation.calls import Calls
from fl_darex.simulation.cluster import connect, disconnect
from fl_darex.simulation.grid import SimulatedGrid, check_app
from fl_darex.simulation.kinds import Kinds
from fl_darex.simulation.resources import Classes, Resources, groups_of
from fl_darex.simulation.room import machines
from fl_darex.simulation.staff import Staff
from fl_darex.simulation.what_to_run import AppFolder, asked_for
from fl_darex.simulation.worker import Setting
from fl_darex.simulation.workers import Workers


class RayGrid(SimulatedGrid):
    """Runs clients on Ray actors behind Flower's public `Grid` interface.

    The model of a round goes into Ray's object store once, not once per client. A worker keeps its
    ClientApp, and so the app's own caches, from client to client, and is given those that take
    little time together. A client that raises is one error reply. Where a worker dies, its clients
    are run again, alone and with the state that they had before; one of whom two workers died is
    an error reply. One that runs out of memory is run again alone, with whole GPUs or with the
    machine to itself, and is an error reply if that is not enough. Where nobody waits for a reply
    any more, as after a timeout, the worker that is still at it is replaced. A client runs in a
    thread of its worker, always the same one, that is not the main one.

    Use it as a context manager, or call `close`.

    Args:
        client_app: A ClientApp, or ``"module:attribute"`` (loaded in each worker).
        clients: Number of simulated nodes; node i has partition i.
        resources: What one client may use.
        run_config: What clients see as ``context.run_config``.
        classes: What some clients need in place of that, by partitions:
            ``{range(10): Resources(num_gpus=1)}``.

    Raises:
        TypeError: If an argument is of another kind, such as a class in place of an app.
        ValueError: If a class has a client that is not there, or that another one has.
        ConfigError: If not even one client of a class fits into the cluster.
        EngineError: If Ray cannot be started; from the first messages on, if no worker can load
            the app.
    """

    def __init__(
        self,
        client_app: ClientAppCallable | str,
        clients: int,
        resources: Resources | None = None,
        run_config: Mapping[str, Any] | None = None,
        classes: Classes | None = None,
    ) -> None:
        super().__init__(clients, run_config)
        if not isinstance(client_app, str):
            check_app("client_app", client_app, ClientApp)
        resources = resources or Resources()
        checks.instance("resources", resources, Resources, "Resources or None")
        groups = groups_of(clients, resources, classes)
        self._workers: Staff | None = None
        self._owns_ray = connect(resources)
        setting = Setting(clients, self._run_config)
        try:
            kinds = Kinds(groups, machines(), resources.actors)
            self._workers = Staff(Workers(client_app, setting), kinds)
            self._workers.begin()
            self._calls = Calls(kinds, self._workers, self.partitions, self._answer)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as trouble:  # what the run came to, or failed of, is what matters
            log(WARNING, "Ray could not be left in order: %s", trouble)

    @property
    def running(self) -> int:
        """Clients that a worker has."""
        return self._calls.running

    @property
    def waiting(self) -> int:
        """Clients that no worker has yet."""
        return len(self._calls.waiting)

    def close(self) -> None:
        """Stop the workers, and Ray if this grid started it. May be called twice."""
        if self._workers is not None and not self._owns_ray and ray.is_initialized():
            self._workers.stop()
        if self._owns_ray:
            self._owns_ray = False
            disconnect()

    def forget(self, message_ids: Iterable[str]) -> None:
        """Give up messages that nobody waits for; workers that are still at them are replaced.

        The clients' states stay what they were before these messages.
        """
        super().forget(keys := set(message_ids))
        with self._one:
            no_turn, late = self._calls.forget(keys)
        if no_turn or late:
            partitions = sorted(self.partitions[job.node] for job in late)
            log(
                WARNING,
                "%d clients did not answer in time: %d had no turn, and those of the partitions %s "
                "are given up, their workers replaced",
                *(len(no_turn) + len(late), len(no_turn), partitions),
            )

    def _hand_out(self, messages: list[Message]) -> None:
        self._calls.add(messages, self._run.run_id)

    def _collect(self) -> None:
        self._calls.collect()

    def _states(self) -> dict[int, RecordDict]:
        return self._calls.states.records()

    def _set_states(self, states: dict[int, RecordDict]) -> None:
        self._calls.states.replace(states)


def simulate(
    server_app: ServerApp | AppFolder,
    client_app: ClientAppCallable | str | None = None,
    *,
    clients: int | None = None,
    resources: Resources | None = None,
    run_config: Mapping[str, Any] | None = None,
    classes: Classes | None = None,
) -> Context:
    """Run a whole federation with Ray and return the server's context.

    Args:
        server_app: Any Flower ServerApp; or the folder of a Flower app, whose ``pyproject.toml``
            says what ``flwr run`` would run.
        client_app: Any Flower ClientApp, or ``"module:attribute"``; an app's folder has its own.
        clients: Number of simulated nodes; node i has ``node_config["partition-id"] == i``. May be
            left out where an app's file says it (``[tool.flwr.federations]``).
        resources: What one client may use; default what an app's file says, or one core, no GPU.
        run_config: What both apps see as ``context.run_config``; with an app's folder, settings
            that replace those of its file, which must have them.
        classes: What some clients need in place of that; see `RayGrid`.

    Raises:
        TypeError: If an argument is of another kind, such as a class in place of an app.
        ValueError: If a class has a client that is not there, or that another one has.
        ConfigError: If not even one client fits into the cluster, or the folder has no app that
            can be loaded.
        EngineError: If another thread runs an app from its folder.
    """
    with asked_for(server_app, client_app, clients=clients, run_config=run_config) as it:
        own = resources or Resources(**it.per_client)
        with RayGrid(it.client_app, it.clients, own, it.run_config, classes) as grid:
            return grid.serve(it.server_app)
