"""The server half of fl-darex."""

from fl_darex.secagg import SecureAggregation

from .darex_strategy import DarexStrategy

__all__ = ["DarexStrategy", "SecureAggregation"]
