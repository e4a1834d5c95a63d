"""What no run needs: influence, bounds, the chooser of Fig. 4, outliers, diff pruning, figures."""

from fl_darex.analysis.bounds import chernoff_bound, h_diff_bound, h_diff_mean, h_diff_variance
from fl_darex.analysis.chooser import Choice, choose_method
from fl_darex.analysis.influence import delta_magnitude, influence, magnitudes

__all__ = [
    "Choice",
    "chernoff_bound",
    "choose_method",
    "delta_magnitude",
    "h_diff_bound",
    "h_diff_mean",
    "h_diff_variance",
    "influence",
    "magnitudes",
]
