"""Which entries of a delta survive, and why."""

from fl_darex.pruning.dare import dare, draw
from fl_darex.pruning.magnitude import magnitude
from fl_darex.pruning.structured import structured
from fl_darex.pruning.wanda import wanda

__all__ = ["dare", "draw", "magnitude", "structured", "wanda"]
