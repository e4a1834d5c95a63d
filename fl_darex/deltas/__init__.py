"""Fine-tuned models as small files: what changed, pruned, and back.

`prune` writes one, `apply` makes a model of it again, `inspect` says what is in it; both models are
gone through tensor by tensor. The commands ``fl-darex prune``, ``apply`` and ``inspect`` are these.
"""

from fl_darex.deltas.applied import apply, check_base, open_base, restored_tensors, survivors_of
from fl_darex.deltas.checkpoints import Checkpoint, open_checkpoint
from fl_darex.deltas.container import DeltaFile, open_delta
from fl_darex.deltas.exported import export, prune_as
from fl_darex.deltas.low_rank import merged, open_pair
from fl_darex.deltas.pruned import Pruned, prune
from fl_darex.deltas.report import Report, inspect
from fl_darex.deltas.settings import Pruning

__all__ = [
    "Checkpoint",
    "DeltaFile",
    "Pruned",
    "Pruning",
    "Report",
    "apply",
    "check_base",
    "export",
    "inspect",
    "merged",
    "open_base",
    "open_checkpoint",
    "open_delta",
    "open_pair",
    "prune",
    "prune_as",
    "restored_tensors",
    "survivors_of",
]
