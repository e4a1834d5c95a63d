"""The passes over memory that AdamR adds to Adam, each as few as it gets."""

from __future__ import annotations

import torch
from torch import Tensor

_ROW = 1024  # a CPU norm adds float32 naively: 1e-3 off at 23 M elements, 1e-6 at this many
_PIECE = 2**18  # elements: on a CPU a large temporary costs more than the arithmetic


def square_sums(grads: list[Tensor]) -> list[Tensor]:
    """Return the sum of squares of each gradient, float64, shape (), on one device."""
    wide = torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32
    if any(not g.is_cpu for g in grads):
        norms = torch._foreach_norm(grads, 2, dtype=wide)
        home = "cpu" if norms[0].device.type == "mps" else norms[0].device  # MPS has no float64
        return list(torch.stack([norm.to(home) for norm in norms]).double().square_().unbind())
    sums = []
    for flat in (g.reshape(-1) for g in grads):
        whole = flat.numel() // _ROW * _ROW
        rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=wide)
        rest = torch.linalg.vector_norm(flat[whole:], dtype=wide)
        sums.append(rows.double().square_().sum() + rest.double().square_())
    return sums


def pull_l1(params: list[Tensor], anchors: list[Tensor], steps: list[Tensor]) -> None:
    """Move each entry towards its anchor by a distance, or onto it if it is nearer, in place."""
    for p, anchor, step in zip(params, anchors, steps, strict=True):
        both = (t.view(t.shape or (1,)).chunk(1 + t.numel() // _PIECE) for t in (p, anchor))
        for theta, goal in zip(*both, strict=True):
            lowest = theta - step  # the goal clamped to theta +- step: hit to the bit if near
            torch.clamp(goal, lowest, theta.add_(step), out=theta)
