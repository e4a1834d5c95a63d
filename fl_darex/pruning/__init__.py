"""Which entries of a delta survive."""

from fl_darex.pruning.dare import dare, draw

__all__ = ["dare", "draw"]
