"""What can be set about diff pruning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_darex.masks import keep_threshold


@dataclass(frozen=True, kw_only=True)
class DiffPruning:
    """Settings of diff pruning; the defaults are those of the paper's BERT-large.

    Attributes:
        p: Fraction dropped in the end, in [0, 1); the paper's target sparsity .005 is p = .995.
        steps: Optimizer steps in which values and gates are learned, at least 1.
        finetune_steps: Steps with the mask fixed after that; 0: none.
        penalty: The price lambda of one expected non-zero entry, at least 0. Higher closes more
            gates. 1.25e-7 is for 335 M entries; a smaller model wants it larger in proportion.
        lr: Learning rate of the values; it falls to 0 linearly in each stage.
        finetune_lr: The same with the mask fixed; None: ``lr``.
        gate_lr: Learning rate of the gates' parameters; constant.
        alpha: Where the gates' parameters begin: at 5, nearly every gate is open.
        structured: One more gate for each tensor, so that whole tensors can be switched off.
        max_grad_norm: Gradients of values and of gates are each clipped at this norm; 0: not.
        seed: The run's seed: gates and dropout come from it.

    Raises:
        ValueError: If a number is outside its range.
    """

    p: float
    steps: int
    finetune_steps: int = 0
    penalty: float = 1.25e-7
    lr: float = 1e-5
    finetune_lr: float | None = None
    gate_lr: float = 0.1
    alpha: float = 5.0
    structured: bool = False
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        keep_threshold(self.p)
        least = {"steps": 1, "finetune_steps": 0, "penalty": 0, "max_grad_norm": 0}
        for name, bound in least.items():
            if not bound <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be a number of at least {bound}, got {value!r}")
        for name in ("lr", "finetune_lr", "gate_lr"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, got {self.alpha!r}")
