"""Values of a study's file, each checked, or refused with what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fl_darex.config.sections import bytes_of
from fl_darex.config.text import Scalar, flatten
from fl_darex.errors import ConfigError

_SECTIONS = ("task", "federation", "train", "compress", "server", "resources")


def table(where: str, value: Any) -> Mapping[str, Any]:
    """Return a table; all functions here raise `ConfigError` where it is something else."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r} is not allowed; it must be a table: [{where}]")
    return value


def a_list(where: str, value: Any) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise ConfigError(f"{where} = {value!r} is not allowed; it must be a list")
    return value


def a_text(where: str, value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r} is not allowed; it must be text")
    return value


def a_number(where: str, value: Any, above: float, high: float) -> float:
    """Return a number in ``(above, high]``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= high:
        words = f"a number above {above:g}" + (f" to {high:g}" if high < math.inf else "")
        raise ConfigError(f"{where} = {value!r} is not allowed; it must be {words}")
    return float(value)


def a_size(value: Any) -> int:
    """Return a number of bytes, such as ``'50 kB'``."""
    try:
        found = bytes_of(str(value))
    except ValueError:
        found = 0
    if found > 0:
        return found
    raise ConfigError(f"budgets has {value!r}; write numbers of bytes above 0, such as '50 kB'")


def a_link(value: Any) -> tuple[float, float]:
    """Return rates up and down, Mbit/s."""
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"links has {value!r}; write pairs [up, down] in Mbit/s, such as [1, 10]")
    up, down = (a_number("links", rate, 0.0, 1e9) for rate in value)
    return up, down


def seeds(value: Any, where: str = "seeds") -> tuple[int, ...]:
    """Return seeds, at least one."""
    found = a_list(where, value)
    whole = all(type(one) is int and 0 <= one < 2**63 for one in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ConfigError(
            f"{where} = {value!r} is not allowed; it must be whole numbers from 0, each once"
        )
    return tuple(found)


def scalars(where: str, tree: Any) -> dict[str, Scalar]:
    """Return settings by flat keys."""
    flat = flatten(table(where, tree))
    check_sections(where, flat)
    for key, value in flat.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(f"{where} sets {key} = {value!r}; it must be one value")
    return flat


def lists(where: str, tree: Any) -> dict[str, list[Scalar]]:
    """Return lists of values by flat keys."""
    flat = flatten(table(where, tree))
    check_sections(where, flat)
    for key, values in flat.items():
        scalars = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
        if not scalars or not values or len(set(values)) < len(values):
            raise ConfigError(
                f"{where} has {key} = {values!r}; it must be a list of values, each once"
            )
    return flat


def check_sections(where: str, flat: Mapping[str, Any], own: Sequence[str] = ()) -> None:
    """Refuse keys of no section of a configuration, and that are none of ``own``."""
    for key in flat:
        if key.partition(".")[0] not in _SECTIONS:
            allowed = ", ".join([*own, *(f"{section}.KEY" for section in _SECTIONS)])
            raise ConfigError(f"{where} has the unknown key {key!r}; allowed: {allowed}")
