"""What somebody else's strategy remembers: its attributes, where it does not say it itself."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_darex.flower.records import to_arrays, to_record
from fl_darex.saveable import Saveable


def remembered(strategy: Strategy) -> dict[str, Any]:
    """Return what a strategy remembers, without what it wraps: momentum, moments, counts."""
    if isinstance(strategy, Saveable):
        return strategy.state()
    packed = {name: _packed(value) for name, value in vars(strategy).items()}
    return {name: value for name, value in packed.items() if value is not _NO_STATE}


def settings(strategy: Strategy) -> dict[str, Any]:
    """Return the numbers and texts among a strategy's attributes, each as it is now."""
    return {n: v for n, v in vars(strategy).items() if isinstance(v, int | float | str)}


def forgotten(strategy: Strategy) -> list[str]:
    """Return what `remembered` leaves out, each with its kind; not functions and strategies."""
    if isinstance(strategy, Saveable):
        return []
    return [
        f"{type(strategy).__name__}.{name} ({type(value).__name__})"
        for name, value in vars(strategy).items()
        if not (callable(value) or isinstance(value, Strategy)) and _packed(value) is _NO_STATE
    ]


def remind(strategy: Strategy, state: dict[str, Any]) -> None:
    """Let a strategy remember what `remembered` said of one like it."""
    if isinstance(strategy, Saveable):
        strategy.restore(state)
    else:
        vars(strategy).update({name: _unpacked(value) for name, value in state.items()})


def _packed(value: Any) -> Any:
    """Return a value as plain ones; `_NO_STATE` where it is none, such as a function."""
    if isinstance(value, ArrayRecord):
        return {_RECORD: to_arrays(value)}
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, _CONTAINERS):
        packed = _each(value, _packed)
        inside = packed.values() if isinstance(packed, dict) else packed
        return _NO_STATE if any(one is _NO_STATE for one in inside) else packed
    plain = value is None or isinstance(value, int | float | str | bytes | np.generic)
    return value if plain else _NO_STATE


def _unpacked(value: Any) -> Any:
    if type(value) is dict and value.keys() == {_RECORD}:
        return to_record(value[_RECORD])
    return _each(value, _unpacked) if isinstance(value, _CONTAINERS) else value


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same kind, such as a `defaultdict`, of what its items become."""
    if isinstance(value, tuple):
        items = tuple(map(change, value))
        return value._make(items) if hasattr(value, "_make") else items  # a named one
    if isinstance(value, set | frozenset):
        return type(value)(map(change, value))
    same = copy.copy(value)
    for key in value if isinstance(value, dict) else range(len(value)):
        same[key] = change(value[key])
    return same


_RECORD = "flwr.app.ArrayRecord"
"""Key of the arrays of a record, which tells them from a dictionary of arrays."""

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)

_NO_STATE = object()
