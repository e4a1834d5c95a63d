"""What is wrong with a configuration, in one line for a person.

Words and ranges come from the fields' own declarations, so they cannot drift from the checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fl_darex.errors import nearest


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return one line about the first mistake: key, value, what is allowed, the nearest choice."""
    # A union (compress.q) reports once per member; the first report is enough.
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:2])
    if first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")
    return f"{where} = {first['input']!r} is not allowed; {_allowed(root, where, first['input'])}"


def _allowed(root: type[BaseModel], key: str, found: Any) -> str:
    """Say in words what a key takes, from the field's own declaration."""
    section, _, name = key.partition(".")
    fields: dict[str, Any] = root.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    field = next(field for field in fields.values() if field.alias == name)
    kind = field.annotation
    choices = [option for arg in (kind, *get_args(kind)) for option in _options(arg)]
    named = {getattr(arg, "__origin__", None) for arg in (kind, *get_args(kind))}
    if choices and named & {Literal, str} and not named & {int, float}:
        return f"allowed: {', '.join(map(repr, choices))}{nearest(str(found), choices)}"
    if kind is bool:
        return "it must be true or false"
    number = "a whole number" if int in (kind, *named) else "a number"
    words = [", ".join(map(repr, choices))] if choices else []
    if kind is str:
        return "it must be text"
    limits = _range([*field.metadata, *_nested(kind)])
    hint = nearest(found, choices) if isinstance(found, str) else ""
    return f"it must be {' or '.join([*words, number])}{limits}{hint}"


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _nested(kind: Any) -> list[Any]:
    """Return the limits that a member of a union declares."""
    fields = [field for arg in get_args(kind) for field in getattr(arg, "__metadata__", ())]
    return [limit for field in fields for limit in field.metadata]


def _range(limits: Iterable[Any]) -> str:
    signs = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    parts = [
        f"{word} {getattr(limit, name):g}"
        for name, word in signs.items()
        for limit in limits
        if hasattr(limit, name)
    ]
    return f" {' '.join(parts)}" if parts else ""
