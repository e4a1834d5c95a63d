"""The process that runs clients, one after the other."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import ray
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from ray import ObjectRef

from fl_darex.registry import load
from fl_darex.simulation.client import answer

# The model of the current round and of the one before: a client may still be on its way.
_KEPT_MODELS = 2


class Worker:
    """Holds the ClientApp, and with it whatever the app caches: model, tokenizer, data.

    Args:
        app: The ClientApp itself, or ``"module:attribute"``.
    """

    def __init__(self, app: ClientAppCallable | str) -> None:
        self._app = load(app, "ClientApp") if isinstance(app, str) else app
        self._models: OrderedDict[str, ArrayRecord] = OrderedDict()

    def ready(self) -> int:
        """Return the process id; answers once the app is loaded."""
        return os.getpid()

    def run(
        self,
        message: Message,
        shared: dict[str, list[ObjectRef[Any]]],
        context: Context,
        state: RecordDict | None,
    ) -> tuple[Message, RecordDict | None]:
        """Run one client.

        Args:
            message: The message, without the records named in ``shared``.
            shared: Array records by name, each as one reference to the object store.
            context: The client's context with an empty state.
            state: The client's state from its last call, if it left any.

        Returns:
            The reply, an error reply if the app raised, and the state if there is any.
        """
        if state is not None:
            context.state = state

        def whole(message: Message, context: Context) -> Message:
            for name, (reference,) in shared.items():
                message.content[name] = self._model(reference)
            return self._app(message, context)

        reply, left = answer(whole, message, context)
        return reply, left if len(left) else None

    def _model(self, reference: ObjectRef[Any]) -> ArrayRecord:
        key = reference.hex()
        if key not in self._models:
            self._models[key] = ray.get(reference)
            while len(self._models) > _KEPT_MODELS:
                self._models.popitem(last=False)
        # A record is mutable and apps do empty it; the arrays in it are not.
        return ArrayRecord(dict(self._models[key]))
