"""What the grids of all engines of ours have in common: nodes, messages, clients' states."""

from __future__ import annotations

import gc
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from logging import ERROR
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fl_darex import checks
from fl_darex.flower.grids import exchange
from fl_darex.flower.private import (
    SERVER_NODE_ID,
    NodeInfo,
    NodeStatus,
    Run,
    adopt_run,
    from_bytes,
    node_id_of,
    number,
    to_bytes,
)

_REPLY = 1 << 255  # the highest bit of an id: the reply to the message of the others


class SimulatedGrid(Grid):
    """A Grid whose nodes are simulated by this process or its workers.

    Threads may share it, as Flower's older strategies do with one for each client.

    Args:
        clients: Number of simulated nodes; node i has partition i.
        run_config: What clients and server see as ``context.run_config``.

    Attributes:
        partitions: Partition by node id.

    Raises:
        TypeError: If the number of clients is no whole number, or the settings are no mapping.
        ValueError: If there is not even one client.
    """

    # pull_messages waits itself where there is something to wait for; here other threads come in.
    pull_interval = 0.001

    def __init__(self, clients: int, run_config: Mapping[str, Any] | None = None) -> None:
        clients = checks.whole("clients", clients, "1 or more", lambda number: number >= 1)
        if run_config is not None:
            checks.instance("run_config", run_config, Mapping, "a mapping of names to values")
        self.partitions = {node_id_of(index): index for index in range(clients)}
        self._run = adopt_run("simulation")
        self._run_config = dict(run_config or {})
        self._sent = 0
        self._one = threading.RLock()
        self._done: dict[str, Message] = {}

    def serve(self, server_app: ServerApp) -> Context:
        """Run a ServerApp on this grid and return the server's context.

        Raises:
            TypeError: If it is none.
        """
        check_app("server_app", server_app, ServerApp)
        context = self._context(SERVER_NODE_ID, {}, RecordDict())
        with _little_garbage():
            server_app(self, context)
        return context

    @abstractmethod
    def _hand_out(self, messages: list[Message]) -> None:
        """Give messages, which have their ids, to clients; replies go to `_answer`."""

    @abstractmethod
    def _collect(self) -> None:
        """Take replies that have come, and wait a little if there are none."""

    @abstractmethod
    def _states(self) -> dict[int, RecordDict]:
        """Return the states that clients have left, by node."""

    @abstractmethod
    def _set_states(self, states: dict[int, RecordDict]) -> None:
        """Take states in place of all that there are."""

    def state(self) -> dict[str, Any]:
        """Return what this grid remembers, between rounds: each client's ``context.state``.

        A client that still works on a message counts with its state before it.
        """
        states = {self.partitions[node]: to_bytes(s) for node, s in self._states().items() if s}
        return {"sent": self._sent, "states": states}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on this engine or another one of ours."""
        nodes = {partition: node for node, partition in self.partitions.items()}
        self._sent = state["sent"]
        self._set_states({nodes[p]: from_bytes(data) for p, data in state["states"].items()})

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`.

        Raises:
            TypeError: If it is no run of Flower's.
        """
        checks.instance("run", run, Run, "a Run")
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
        return list(self.partitions)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all simulated nodes; they are online."""
        return [NodeInfo(node_id=node, status=NodeStatus.ONLINE) for node in self.partitions]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the clients and return their ids.

        A message to a node that is not there has none, with a line in the log, and costs the
        others nothing, as on Flower's grids.

        Raises:
            ValueError: If one is not a message from this server to a node.
        """
        listed = list(messages)
        for message in listed:
            self._check(message)
        known = [m for m in listed if m.metadata.dst_node_id in self.partitions]
        if unknown := {m.metadata.dst_node_id for m in listed} - self.partitions.keys():
            log(ERROR, "messages to nodes that are not there are not sent: %s", sorted(unknown))
        with self._one:
            for message in known:
                self._sent += 1
                # As wide as a deployment's ids, which are SHA-256 hashes.
                number(message, f"{self._sent:064x}")
            self._hand_out(known)
        return [message.metadata.message_id for message in known]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have come, in the order in which they came.

        Where some are on their way, it waits for 0.05 s at most.
        """
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        with self._one:
            self._collect()
            return [self._done.pop(key) for key in list(self._done) if key in wanted]

    def forget(self, message_ids: Iterable[str]) -> None:
        """Keep no replies to these messages, and have no client work on them any more."""
        with self._one:
            for key in message_ids:
                self._done.pop(key, None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds."""
        replies, late = exchange(self, messages, timeout, self.pull_interval)
        self.forget(late)
        return replies

    def _answer(self, message: Message, reply: Message) -> None:
        """Take the reply to a message; it is given an id, as by the network."""
        asked = message.metadata.message_id
        number(reply, f"{_REPLY | int(asked, 16):064x}")
        self._done[asked] = reply

    def _check(self, message: Message) -> None:
        data = message.metadata
        if (
            data.run_id != self._run.run_id
            or data.src_node_id != SERVER_NODE_ID
            or data.reply_to_message_id
            or data.ttl <= 0
        ):
            raise ValueError(
                f"Invalid message: {message}; the server sends Message(content, dst_node_id, "
                "message_type) of its own run"
            )

    def _context_of(self, node: int, state: RecordDict) -> Context:
        config = {"partition-id": self.partitions[node], "num-partitions": len(self.partitions)}
        return self._context(node, config, state)

    def _context(self, node: int, config: dict[str, Any], state: RecordDict) -> Context:
        return Context(self._run.run_id, node, config, state, dict(self._run_config))


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let collections of garbage pass over what is loaded now.

    Flower's FedAvg collects garbage for each reply, which takes a tenth of a second where torch is
    loaded: with small clients, nearly all of a round.
    """
    free = not gc.get_freeze_count()  # somebody else's is left alone
    if free:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if free:
            gc.unfreeze()


def check_app(name: str, app: Any, kind: type[ClientApp] | type[ServerApp]) -> None:
    """Raise `TypeError` unless a value can be an app: the other half of an app can be called, too.

    Args:
        name: What the argument is called.
        app: A ServerApp, a ClientApp or a function in its place.
        kind: Which of the two is wanted.
    """
    other = ClientApp if kind is ServerApp else ServerApp
    if not callable(app) or isinstance(app, type | other):
        raise TypeError(f"{name} must be a {kind.__name__}, got {checks.shown(app)}")
