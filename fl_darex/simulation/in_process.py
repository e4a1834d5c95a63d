"""`InProcessGrid`: Flower's Grid without an engine, in one process and one thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import ServerApp

from fl_darex.registry import load
from fl_darex.simulation.client import answer, detached, failure
from fl_darex.simulation.grid import SimulatedGrid, check_app
from fl_darex.simulation.memory import WAY_OUT, let_go, ran_out
from fl_darex.simulation.what_to_run import AppFolder, asked_for

_SPOILT = "if later clients fail, too, this process has lost its GPU: Ray's engine replaces workers"


class InProcessGrid(SimulatedGrid):
    """Runs clients one after the other, when messages are pushed, in the caller's process.

    Nothing is started, a debugger and a profiler see everything, and results are those of the
    other engines, bit for bit. Records are copied both ways, so that clients share none with each
    other or with the server. A client that raises is one error reply; one that never returns stops
    everything, because a ``timeout`` cannot cut a client short.

    Args:
        client_app: A ClientApp, or ``"module:attribute"``.
        clients: Number of simulated nodes; node i has partition i.
        run_config: What clients and server see as ``context.run_config``.

    Raises:
        TypeError: If an argument is of another kind, such as a class in place of an app.
        ValueError: If there is not even one client.

    Attributes:
        running: Clients at work: one, while messages are pushed.
        waiting: Messages of the same push that come after it.
    """

    def __init__(
        self,
        client_app: ClientAppCallable | str,
        clients: int,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(clients, run_config)
        self._app = load(client_app, "ClientApp") if isinstance(client_app, str) else client_app
        check_app("client_app", self._app, ClientApp)
        self._left: dict[int, RecordDict] = {}
        self.running = self.waiting = 0

    def _hand_out(self, messages: list[Message]) -> None:
        for place, message in enumerate(messages, start=1):
            self.running, self.waiting = 1, len(messages) - place
            self._answer(message, self._reply(message))
        self.running = 0

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = self._context_of(node, self._left.get(node) or RecordDict())
        # Copies of records cost little: what an array holds is bytes, which nobody can change.
        try:
            reply, self._left[node] = answer(self._app, detached(message), context)
            return reply
        except Exception as error:
            where, reason = ran_out(error), f"{type(error).__name__}: {error}".rstrip(": ")
        if not where:
            return failure(message, f"{reason}; {_SPOILT}")
        let_go()  # no longer held by the error
        return failure(message, f"out of memory: {reason}; {WAY_OUT[where]}")

    def _collect(self) -> None:
        """Nothing can be on its way."""

    def _states(self) -> dict[int, RecordDict]:
        return self._left

    def _set_states(self, states: dict[int, RecordDict]) -> None:
        self._left = states


def simulate_in_process(
    server_app: ServerApp | AppFolder,
    client_app: ClientAppCallable | str | None = None,
    *,
    clients: int | None = None,
    run_config: Mapping[str, Any] | None = None,
) -> Context:
    """Run a federation in this process; see `fl_darex.simulation.simulate` for the arguments."""
    with asked_for(server_app, client_app, clients=clients, run_config=run_config) as it:
        return InProcessGrid(it.client_app, it.clients, it.run_config).serve(it.server_app)
