"""The server half of fl-darex."""

from fl_darex.secagg import SecureAggregation

from .averaging import Average
from .checkpoints import Checkpoints
from .darex_strategy import DarexStrategy

__all__ = ["Average", "Checkpoints", "DarexStrategy", "SecureAggregation"]
