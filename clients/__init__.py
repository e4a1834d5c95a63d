"""The client half of fl-darex."""

from .darex_mod import DarexMod

__all__ = ["DarexMod"]
