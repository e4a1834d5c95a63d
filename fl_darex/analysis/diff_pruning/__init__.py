"""Diff pruning: fine-tuning that learns a sparse delta, the rival of pruning afterwards.

Guo, Rush & Kim, "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021,
https://arxiv.org/abs/2012.07463; compared with DAREx in Tables 10 and 11 of "DARE the Extreme".
"""

from fl_darex.analysis.diff_pruning.prune import Step, diff_prune
from fl_darex.analysis.diff_pruning.settings import DiffPruning

__all__ = ["DiffPruning", "Step", "diff_prune"]
