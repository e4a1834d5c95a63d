"""The process that runs clients, one after the other."""

from __future__ import annotations

import os
from collections import OrderedDict
from importlib import import_module
from typing import Any

import ray
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from ray import ObjectRef

# The model of the current round and of the one before: a client may still be on its way.
_KEPT_MODELS = 2


class Worker:
    """Holds the ClientApp, and with it whatever the app caches: model, tokenizer, data.

    Args:
        app: The ClientApp itself, or ``"module:attribute"``.
    """

    def __init__(self, app: ClientApp | str) -> None:
        self._app = _load(app)
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
        try:
            for name, (reference,) in shared.items():
                message.content[name] = self._model(reference)
            reply = self._app(message, context)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code=code, reason=reason), reply_to=message), state
        return reply, context.state if len(context.state) else None

    def _model(self, reference: ObjectRef[Any]) -> ArrayRecord:
        key = reference.hex()
        if key not in self._models:
            self._models[key] = ray.get(reference)
            while len(self._models) > _KEPT_MODELS:
                self._models.popitem(last=False)
        # A record is mutable and apps do empty it; the arrays in it are not.
        return ArrayRecord(dict(self._models[key]))


def _load(app: ClientApp | str) -> ClientApp:
    if not isinstance(app, str):
        return app
    module, _, attribute = app.partition(":")
    loaded: Any = getattr(import_module(module), attribute)
    return loaded  # type: ignore[no-any-return]
