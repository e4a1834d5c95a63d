"""A strategy in front of another one, whose attributes are reached through it."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import Strategy

from .wrapped import Wrapped


class Front(Strategy):
    """Has the attributes of the strategy behind it, where it has none of its own by that name.

    Subclasses set ``_wrapped`` after all attributes of their own.
    """

    _wrapped: Wrapped

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
