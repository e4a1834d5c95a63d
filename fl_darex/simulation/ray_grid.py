"""`RayGrid`: Flower's Grid on Ray actors, for any ServerApp and any ClientApp; `simulate`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from logging import WARNING
from types import TracebackType
from typing import Any, Self

import ray
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log
from flwr.serverapp import ServerApp
from ray import ObjectRef
from ray.actor import ActorHandle

from fl_darex import checks
from fl_darex.flower.private import ErrorCode, with_content
from fl_darex.simulation.client import failure
from fl_darex.simulation.cluster import Resources, capacity, connect
from fl_darex.simulation.grid import SimulatedGrid, check_app
from fl_darex.simulation.what_to_run import AppFolder, asked_for
from fl_darex.simulation.worker import Worker

_POLL_SECONDS = 0.05


@dataclass
class _Task:
    node: int
    message: Message  # without the shared records
    shared: dict[str, list[ObjectRef[Any]]]


@dataclass
class _Running:
    worker: ActorHandle[Any]
    task: _Task
    state: ObjectRef[Any]  # of the client, once its reply is there


class RayGrid(SimulatedGrid):
    """Runs clients on Ray actors behind Flower's public `Grid` interface.

    The model of a round goes into Ray's object store once, not once per client. An actor keeps
    its ClientApp, and so the app's own caches, from client to client. A client that raises is
    one error reply; an actor that dies is one error reply and is replaced.

    Use it as a context manager, or call `close`.

    Args:
        client_app: A ClientApp, or ``"module:attribute"`` (loaded in each worker).
        clients: Number of simulated nodes; node i has partition i.
        resources: What one client may use.
        run_config: What clients see as ``context.run_config``.

    Raises:
        TypeError: If an argument is of another kind, such as a class in place of an app.
        ConfigError: If not even one client fits into the cluster.
        EngineError: If Ray cannot be started.
    """

    def __init__(
        self,
        client_app: ClientAppCallable | str,
        clients: int,
        resources: Resources | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(clients, run_config)
        if not isinstance(client_app, str):
            check_app("client_app", client_app, ClientApp)
        checks.instance("resources", resources or Resources(), Resources, "Resources or None")
        self._resources = resources or Resources()
        self._left: dict[int, ObjectRef[Any]] = {}
        self._waiting: deque[_Task] = deque()
        self._running: dict[ObjectRef[Any], _Running] = {}
        self._owns_ray = connect(self._resources)
        self._app = client_app if isinstance(client_app, str) else ray.put(client_app)
        try:
            count = min(capacity(self._resources), clients)
        except Exception:
            self.close()
            raise
        self._idle = [self._new_worker() for _ in range(count)]

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
        """Clients at work."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Messages that wait for a worker, or for their client to end its work."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop the workers, and Ray if this grid started it. May be called twice."""
        busy = [running.worker for running in self._running.values()]
        workers = [*getattr(self, "_idle", []), *busy]
        self._idle, self._running = [], {}
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
        elif ray.is_initialized():
            for worker in workers:
                ray.kill(worker)

    def _hand_out(self, messages: list[Message]) -> None:
        put: dict[int, tuple[ArrayRecord, ObjectRef[Any]]] = {}
        self._waiting.extend(_share(message, put) for message in messages)
        self._dispatch()

    def _new_worker(self) -> ActorHandle[Any]:
        options = {"num_cpus": self._resources.num_cpus, "num_gpus": self._resources.num_gpus}
        return ray.remote(Worker).options(**options).remote(self._app)  # type: ignore

    def _dispatch(self) -> None:
        while self._idle and (task := self._next()) is not None:
            worker, node = self._idle.pop(), task.node
            outcome: Any = worker.run.options(num_returns=2).remote(
                task.message,
                task.shared,
                self._context_of(node, RecordDict()),
                self._left.get(node),
            )
            reply, state = outcome
            self._running[reply] = _Running(worker, task, state)

    def _next(self) -> _Task | None:
        """Return a task of a client that is not at work: its state is not known before."""
        busy = {running.task.node for running in self._running.values()}
        for place, task in enumerate(self._waiting):
            if task.node not in busy:
                del self._waiting[place]
                return task
        return None

    def _collect(self) -> None:
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_SECONDS)
        if ready:  # others may have finished meanwhile
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            running = self._running.pop(reference)
            message, node = running.task.message, running.task.node
            try:
                reply = ray.get(reference)
            except ray.exceptions.RayError as error:
                # Do not give the dead worker to the next client. The client's state is as before.
                reply = failure(message, _died(error), ErrorCode.UNKNOWN)
                self._idle.append(self._new_worker())
                self._forget_what_is_lost(node)
            else:
                self._idle.append(running.worker)
                self._left[node] = running.state
            self._done[message.metadata.message_id] = reply
        self._dispatch()

    def _forget_what_is_lost(self, node: int) -> None:
        """Let a client begin anew whose state was on a machine that is gone."""
        try:
            ray.get(self._left.get(node, []))
        except ray.exceptions.RayError:
            del self._left[node]

    def _states(self) -> dict[int, RecordDict]:
        states = {node: ray.get(reference) for node, reference in self._left.items()}
        return {node: state for node, state in states.items() if state is not None}

    def _set_states(self, states: dict[int, RecordDict]) -> None:
        self._left = {node: ray.put(state) for node, state in states.items()}


def simulate(
    server_app: ServerApp | AppFolder,
    client_app: ClientAppCallable | str | None = None,
    *,
    clients: int | None = None,
    resources: Resources | None = None,
    run_config: Mapping[str, Any] | None = None,
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

    Raises:
        TypeError: If an argument is of another kind, such as a class in place of an app.
        ConfigError: If not even one client fits into the cluster, or the folder has no app that
            can be loaded.
        EngineError: If another thread runs an app from its folder.
    """
    with asked_for(server_app, client_app, clients=clients, run_config=run_config) as it:
        own = resources or Resources(**it.per_client)
        with RayGrid(it.client_app, it.clients, own, it.run_config) as grid:
            return grid.serve(it.server_app)


def _share(message: Message, put: dict[int, tuple[ArrayRecord, ObjectRef[Any]]]) -> _Task:
    """Move a message's array records to the object store, each record once per round."""
    small, shared = RecordDict(), {}
    for name, record in message.content.items():
        if not isinstance(record, ArrayRecord):
            small[name] = record
            continue
        small[name] = ArrayRecord()  # holds the place
        if id(record) not in put:
            put[id(record)] = (record, ray.put(record))
        # In a list, Ray passes the reference on and does not resolve it for each call.
        shared[name] = [put[id(record)][1]]
    return _Task(message.metadata.dst_node_id, with_content(message, small), shared)


def _died(error: Exception) -> str:
    return f"the worker died: {str(error).splitlines()[0]}"
