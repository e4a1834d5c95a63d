"""`RayGrid`: Flower's Grid on Ray actors, for any ServerApp and any ClientApp."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from ray import ObjectRef
from ray.actor import ActorHandle

from fl_darex.flower.private import adopt_run, node_id_of
from fl_darex.simulation.cluster import Resources, capacity, connect
from fl_darex.simulation.worker import Worker

_POLL_SECONDS = 0.05


@dataclass
class _Task:
    message: Message  # without the shared records
    shared: dict[str, list[ObjectRef[Any]]]


class RayGrid(Grid):
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
        ConfigError: If not even one client fits into the cluster.
        EngineError: If Ray cannot be started.
    """

    pull_interval = 0.0  # pull_messages itself waits a little

    def __init__(
        self,
        client_app: ClientApp | str,
        clients: int,
        resources: Resources | None = None,
        run_config: dict[str, Any] | None = None,
    ) -> None:
        if clients < 1:
            raise ValueError(f"clients must be 1 or more, got {clients}")
        self._run = adopt_run("simulation")
        self._clients = clients
        self._partitions = {node_id_of(index): index for index in range(clients)}
        self._run_config = dict(run_config or {})
        self._resources = resources or Resources()
        self._states: dict[int, ObjectRef[Any]] = {}
        self._waiting: deque[_Task] = deque()
        self._running: dict[ObjectRef[Any], tuple[ActorHandle[Any], _Task]] = {}
        self._done: dict[str, Message] = {}
        self._sent = 0
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
        self.close()

    def close(self) -> None:
        """Stop the workers, and Ray if this grid started it. May be called twice."""
        workers = [*getattr(self, "_idle", []), *(actor for actor, _ in self._running.values())]
        self._idle, self._running = [], {}
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
        elif ray.is_initialized():
            for worker in workers:
                ray.kill(worker)

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run; its ids were made by this grid."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid.create_message`; Flower prefers the Message constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all simulated nodes."""
        return list(self._partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the workers and return their ids.

        Raises:
            ValueError: If a message is for a node that is not there.
        """
        put: dict[int, tuple[ArrayRecord, ObjectRef[Any]]] = {}
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._partitions:
                raise ValueError(f"no such node: {message.metadata.dst_node_id}")
            self._sent += 1
            # As wide as a deployment's ids, which are SHA-256 hashes.
            message.metadata.__dict__["_message_id"] = f"{self._sent:064x}"
            ids.append(message.metadata.message_id)
            self._waiting.append(_share(message, put))
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have come, waiting 0.05 s at most."""
        self._collect()
        return [self._done.pop(key) for key in list(message_ids) if key in self._done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(waiting))
            replies.extend(arrived)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def _new_worker(self) -> ActorHandle[Any]:
        options = {"num_cpus": self._resources.num_cpus, "num_gpus": self._resources.num_gpus}
        return ray.remote(Worker).options(**options).remote(self._app)  # type: ignore

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            task, worker = self._waiting.popleft(), self._idle.pop()
            node = task.message.metadata.dst_node_id
            outcome: Any = worker.run.options(num_returns=2).remote(
                task.message, task.shared, self._context(node), self._states.get(node)
            )
            reply, state = outcome
            self._states[node] = state
            self._running[reply] = (worker, task)

    def _collect(self) -> None:
        if not self._running:
            return
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_SECONDS)
        if ready:  # others may have finished meanwhile
            ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for reference in ready:
            worker, task = self._running.pop(reference)
            try:
                reply = ray.get(reference)
            except ray.exceptions.RayError as error:
                # Do not give the dead worker to the next client.
                reply = _lost(task.message, error)
                self._states.pop(task.message.metadata.dst_node_id, None)
                worker = self._new_worker()
            self._idle.append(worker)
            message_id = task.message.metadata.message_id
            if reply.metadata.reply_to_message_id != message_id:
                reply = _astray(task.message, reply)  # nobody would wait for it
            self._done[message_id] = reply
        self._dispatch()

    def _context(self, node: int) -> Context:
        partition = self._partitions[node]
        return Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config={"partition-id": partition, "num-partitions": self._clients},
            state=RecordDict(),
            run_config=dict(self._run_config),
        )


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
    stand_in = _with_content(message, small)
    return _Task(stand_in, shared)


def _with_content(message: Message, content: RecordDict) -> Message:
    stand_in = object.__new__(Message)
    stand_in.__dict__.update(message.__dict__ | {"_content": content})
    return stand_in


def _astray(message: Message, reply: Message) -> Message:
    """Return an error in place of what answers another message, as some mods' own errors do."""
    reason = reply.error.reason if reply.has_error() else "the app answered another message"
    return Message(
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
    )


def _lost(message: Message, error: Exception) -> Message:
    reason = f"the worker died: {str(error).splitlines()[0]}"
    return Message(Error(code=ErrorCode.UNKNOWN, reason=reason), reply_to=message)
