"""Settings that name a row of a table, or something of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fl_darex.errors import ConfigError, nearest
from fl_darex.registry import Registry


def names_a_row(key: str, table: Registry[Any], *others: str) -> Callable[[str], str]:
    """Return a check of texts that name a row of a table, or somebody's own, which is loaded.

    Args:
        key: The setting, for errors.
        table: Where rows are.
        others: Texts that mean something else.
    """

    def check(value: str) -> str:
        if value in others or value in table:
            return value
        if ":" not in value:
            known = [*others, *table]
            raise ValueError(
                f"{key} = {value!r} is not allowed; allowed: {', '.join(map(repr, known))}, or "
                f"'package.module:name'{nearest(value, known)}"
            )
        try:
            table.choose(value)
        except ConfigError as error:
            raise ValueError(f"{key} = {value!r} is not allowed; {error}") from None
        return value

    return check
