"""Hard-concrete gates: random numbers in [0, 1] that are often exactly 0 or 1, with a gradient.

``z = min(1, max(0, s (r-l) + l))`` with ``s = sigmoid(log u - log(1-u) + alpha)``, u uniform.
Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
https://arxiv.org/abs/1712.01312, at temperature 1; Guo et al. 2021, Sec. 3.1.
"""

from __future__ import annotations

import math

import torch

LOWER, UPPER = -1.5, 1.5
"""The stretch l, r of Guo et al.: the further outside [0, 1], the more gates are 0 or 1."""

_LOG_RATIO = math.log(-LOWER / UPPER)
# A uniform float32 can be 0, whose logit is infinite.
_EDGE = 1e-6


def sample_gates(alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return one draw of the gates, differentiable in ``alpha``.

    Args:
        alpha: The gates' parameters, any shape. Higher means more often open.
        uniform: Uniform in [0, 1), same shape.
    """
    return _stretched(torch.logit(uniform, eps=_EDGE) + alpha)


def median_gates(alpha: torch.Tensor) -> torch.Tensor:
    """Return each gate's median (u = 1/2): 0 for ``alpha <= 0``, 1 from ``alpha = log 5`` on."""
    return _stretched(alpha)


def open_probability(alpha: torch.Tensor) -> torch.Tensor:
    """Return the probability ``sigmoid(alpha - log(-l/r))`` that each gate is not 0."""
    return torch.sigmoid(alpha - _LOG_RATIO)


def _stretched(logits: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(logits) * (UPPER - LOWER) + LOWER).clamp(0.0, 1.0)
