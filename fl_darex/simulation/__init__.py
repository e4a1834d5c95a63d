"""Engines of ours behind Flower's Grid interface; each, and Ray, is loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_darex.simulation.in_process import InProcessGrid as InProcessGrid
    from fl_darex.simulation.in_process import simulate_in_process as simulate_in_process
    from fl_darex.simulation.ray_grid import RayGrid as RayGrid
    from fl_darex.simulation.ray_grid import simulate as simulate
    from fl_darex.simulation.resources import Resources as Resources

_LAZY = {
    "InProcessGrid": "fl_darex.simulation.in_process",
    "RayGrid": "fl_darex.simulation.ray_grid",
    "Resources": "fl_darex.simulation.resources",
    "simulate": "fl_darex.simulation.ray_grid",
    "simulate_in_process": "fl_darex.simulation.in_process",
}

__all__ = ["InProcessGrid", "RayGrid", "Resources", "simulate", "simulate_in_process"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
