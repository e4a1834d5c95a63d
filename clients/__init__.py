"""The client half of fl-darex."""

from .darex_mod import DarexMod
from .told import Told, told

__all__ = ["DarexMod", "Told", "told"]
