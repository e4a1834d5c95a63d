"""The apps of both halves, as `[tool.flwr.app.components]` in pyproject.toml names them.

Flower looks for the two apps from two threads at once. A thread that imports a module waits for
another one that is importing it, but not for one that is importing its parent: it could ask for
``fl_darex.clients`` before ``fl_darex/__init__.py`` has said where that is. This module lies in the
folder of ``fl_darex`` itself and is found at any moment; the apps are loaded when they are used,
which Flower does in one thread after the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MAKE_SERVER_APP = "fl_darex.strategies.server_app:make_app"
CLIENT_APP = "fl_darex.clients.client_app:app"
"""Named, not imported: the library must not depend on its two halves."""

_APPS = {
    "server": "fl_darex.strategies.server_app",
    "client": "fl_darex.clients.client_app",
}

# Flower reads names here before it imports anything.
__all__ = ["client", "server"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name in _APPS:
        return import_module(_APPS[name]).app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_APPS})
