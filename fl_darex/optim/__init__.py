"""Optimizers that keep the delta small, so that more of it can be dropped."""

from fl_darex.optim.adamr import AdamR

__all__ = ["AdamR"]
