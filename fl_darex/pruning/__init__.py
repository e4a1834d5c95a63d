"""Which entries of a delta survive, why, and what dropping them does to outputs."""

from fl_darex.pruning.bounds import chernoff_bound, h_diff_bound, h_diff_mean, h_diff_variance
from fl_darex.pruning.chooser import Choice, choose_method
from fl_darex.pruning.dare import dare, draw
from fl_darex.pruning.influence import delta_magnitude, influence, magnitudes
from fl_darex.pruning.magnitude import magnitude
from fl_darex.pruning.structured import structured
from fl_darex.pruning.wanda import wanda

__all__ = [
    "Choice",
    "chernoff_bound",
    "choose_method",
    "dare",
    "delta_magnitude",
    "draw",
    "h_diff_bound",
    "h_diff_mean",
    "h_diff_variance",
    "influence",
    "magnitude",
    "magnitudes",
    "structured",
    "wanda",
]
