"""The server half of fl-darex."""

from .darex_strategy import DarexStrategy

__all__ = ["DarexStrategy"]
