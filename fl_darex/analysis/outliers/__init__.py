"""Massive activations and outlier features, and what deltas do to them (App. D, Figs. 8, 9).

``norm_peaks`` finds the largest activations before and after each layer norm,
``outlier_features`` the dimensions that are large in many layers, ``output_sizes`` and
``contributions`` how large ``delta_W x`` is, and ``ablations`` what a dimension's deltas are
worth (Table 14).
"""

from fl_darex.analysis.outliers.ablation import ablate_dimension, ablations
from fl_darex.analysis.outliers.features import (
    Contributions,
    OutlierFeatures,
    contributions,
    outlier_features,
)
from fl_darex.analysis.outliers.massive import (
    NormPeaks,
    Peak,
    Peaks,
    massive_dimensions,
    norm_peaks,
)
from fl_darex.analysis.outliers.outputs import OutputSizes, Sizes, output_sizes
from fl_darex.analysis.outliers.residual import Reader, layer_norms, residual_readers

__all__ = [
    "Contributions",
    "NormPeaks",
    "OutlierFeatures",
    "OutputSizes",
    "Peak",
    "Peaks",
    "Reader",
    "Sizes",
    "ablate_dimension",
    "ablations",
    "contributions",
    "layer_norms",
    "massive_dimensions",
    "norm_peaks",
    "outlier_features",
    "output_sizes",
    "residual_readers",
]
