"""Whose processes still run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def with_variable(name: str, matches: Callable[[str], bool]) -> list[int]:
    """Processes that run and have an environment variable, where the system tells (Linux).

    A child inherits it whatever session or parent it is given later.
    """
    start, found = f"{name}=", []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            lines = environment.read_bytes().decode(errors="replace").split("\0")
            if any(line.startswith(start) and matches(line[len(start) :]) for line in lines):
                found.append(int(environment.parent.name))
    return found
