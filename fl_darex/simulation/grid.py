"""What the grids of all engines of ours have in common: nodes, messages, clients' states."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_darex import checks
from fl_darex.flower.grids import exchange
from fl_darex.flower.private import (
    SERVER_NODE_ID,
    Run,
    adopt_run,
    from_bytes,
    node_id_of,
    number,
    to_bytes,
)


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
        server_app(self, context)
        return context

    @abstractmethod
    def _hand_out(self, messages: list[Message]) -> None:
        """Give messages, which have their ids, to clients; replies go to ``_done`` by these."""

    @abstractmethod
    def _collect(self) -> None:
        """Put replies that have come into ``_done``, and wait a little if there are none."""

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
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the clients and return their ids.

        Raises:
            ValueError: If a message is for a node that is not there.
        """
        listed = list(messages)
        with self._one:
            for message in listed:
                if message.metadata.dst_node_id not in self.partitions:
                    raise ValueError(f"no such node: {message.metadata.dst_node_id}")
                self._sent += 1
                # As wide as a deployment's ids, which are SHA-256 hashes.
                number(message, f"{self._sent:064x}")
            self._hand_out(listed)
        return [message.metadata.message_id for message in listed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have come, in the order in which they came.

        Where some are on their way, it waits for 0.05 s at most.
        """
        wanted = set(message_ids)
        with self._one:
            self._collect()
            return [self._done.pop(key) for key in list(self._done) if key in wanted]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds."""
        return exchange(self, messages, timeout, self.pull_interval)[0]

    def _context_of(self, node: int, state: RecordDict) -> Context:
        config = {"partition-id": self.partitions[node], "num-partitions": len(self.partitions)}
        return self._context(node, config, state)

    def _context(self, node: int, config: dict[str, Any], state: RecordDict) -> Context:
        return Context(self._run.run_id, node, config, state, dict(self._run_config))


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
