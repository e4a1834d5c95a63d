"""A strategy in front of another one: whose `start` it runs, whose attributes it has."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, ExitStack
from inspect import signature
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from .checkpoints import Checkpoints
from .resumed import Resumed, Rounds
from .wrapped import Wrapped


class Front(Strategy):
    """Has the attributes of the strategy behind it, where it has none of its own by that name.

    Subclasses set ``_wrapped`` after all attributes of their own, and are `Rounds`.
    """

    _wrapped: Wrapped
    _checkpoints: Checkpoints | None

    @abstractmethod
    def running(
        self, grid: Grid, timeout: float = 3600, train_config: ConfigRecord | None = None
    ) -> AbstractContextManager[Grid]:
        """Yield the grid over which rounds go."""

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *more: Any, **named: Any) -> Result:
        """Run the wrapped strategy's own `start`, with its arguments; its rounds are ours.

        Raises:
            ConfigError: If there is a checkpoint that it cannot go on from.
        """
        strategy = self._wrapped.strategy
        call = signature(strategy.start).bind(grid, initial_arrays, *more, **named)
        asked = call.arguments | named  # its own **keywords would hide some
        timeout, settings = asked.get("timeout") or 3600.0, asked.get("train_config")
        with ExitStack() as stack:
            counted = stack.enter_context(self.running(grid, timeout, settings))
            hooks: Any = self
            if self._checkpoints is not None:
                resumed = Resumed(cast(Rounds, self), self._wrapped, self._checkpoints, grid)
                hooks = stack.enter_context(resumed.going_on(call, initial_arrays))
            stack.enter_context(self._wrapped.hooked(hooks))
            return strategy.start(counted, *call.args[1:], **call.kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped strategy where this one has none of that name."""
        wrapped = vars(self).get("_wrapped")
        if wrapped is None or (holder := wrapped.having(name)) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(holder, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, of the wrapped strategy where only that has one of this name."""
        own, wrapped = vars(self), vars(self).get("_wrapped")
        holder = None if name in own or hasattr(type(self), name) or not wrapped else wrapped
        target = holder.having(name) if holder else None
        super().__setattr__(name, value) if target is None else setattr(target, name, value)
