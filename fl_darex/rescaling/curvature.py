"""One q per tensor, by how noise and step bend the loss.

Let x be a change, s x with ``s = (1-p) / q`` what arrives of it on average, and V the variance of
what dropping adds, for s = 1. The loss falls by ``s g'x - s^2/2 (x'Hx + V_H)`` with
``V_H = sum_i H_ii V_i``: noise counts by the curvature that it meets, not by its norm. Where x
leads to a minimum, ``g'x = x'Hx``, so that the best s of a tensor is ``x'Hx / (x'Hx + V_H)``:

    q / (1-p) = 1 + V_H / x'Hx

H is stood in for by the empirical Fisher matrix at the trained weights, the mean of ``g g'`` over
small batches, which is what Adam's second moment is the diagonal of. Both are squared gradients, so
their scale does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex import checks
from fl_darex.delta import Delta
from fl_darex.rescaling.fixed import keep_rate
from fl_darex.rescaling.layers import PerTensor


def curvature_q(
    tensors: Mapping[str, torch.Tensor],
    delta: Delta,
    losses: Iterable[torch.Tensor],
    p: float,
    *,
    clients: int = 1,
    shared: bool = False,
    nmse: float = 0.0,
) -> PerTensor:
    """Return q for each pruned tensor, in canonical order, shape ``(tensors,)``, in [1-p, 1].

    Clients are taken to agree, with changes of the same length: the mean's x is then each
    client's own. Where they do not agree, the mean is shorter than that while its noise is not, so
    that the true best step is shorter still: this q never shrinks more than it should. What
    tensors do to the loss together is left out.

    A tensor without a gradient, or that did not change, has q = 1-p; so has every tensor where p
    is 0 and values are exact. One along whose change no gradient points has q = 1: all of it is
    noise. A batch with a loss or gradient that is not finite does not count. Memory: the change,
    and the gradients of one batch.

    Args:
        tensors: The model's tensors by the delta's names, at their trained values.
        delta: What training changed.
        losses: The loss of one small batch after the other, each computed when it is asked for; of
            examples like those of the training, which may be among them. Thirty batches of one or
            two examples say more than two of thirty.
        p: Fraction dropped, in [0, 1), by masks that are drawn entry by entry.
        clients: Clients of a round, 1 or more.
        shared: Whether they share one mask, so that their noise does not average out.
        nmse: Squared error of a value coding relative to the squared number, such as
            `fl_darex.wire.codings.Nature.nmse`, 0 or more; it averages out in any case.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If one is out of range, or no batch has finite gradients.
    """
    keep = keep_rate(p)
    clients = checks.whole("clients", clients, "1 or more", lambda number: number >= 1)
    nmse = checks.real("nmse", nmse, "a finite number from 0 on", lambda x: 0 <= x < math.inf)
    apart, along = _bends(tensors, delta, losses)
    noise = ((1.0 - keep) / (1 if shared else clients) + nmse / clients) / keep * apart
    with np.errstate(over="ignore"):
        ratio = np.divide(noise, along, out=np.where(noise > 0, np.inf, 0.0), where=along > 0)
    found: PerTensor = np.clip(keep * (1.0 + ratio), keep, 1.0).astype(np.float32)
    return found


def _bends(
    tensors: Mapping[str, torch.Tensor], delta: Delta, losses: Iterable[torch.Tensor]
) -> NDArray[np.float64]:
    """Return ``sum_i (g_i x_i)^2`` and ``(sum_i g_i x_i)^2`` of each pruned tensor.

    Both are summed up over batches, shape ``(2, tensors)``.
    """
    names = [spec.name for spec in delta.layout.pruned]
    moved = {
        index: torch.from_numpy(delta.whole(name)).to(tensors[name].device)
        for index, name in enumerate(names)
        if tensors[name].requires_grad
    }
    total, batches = np.zeros((2, len(names))), 0
    if not moved:
        return total
    with torch.enable_grad():
        for loss in losses:
            wanted = [tensors[names[index]] for index in moved]
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            one = np.zeros_like(total)
            for (index, change), gradient in zip(moved.items(), gradients, strict=True):
                if gradient is not None:
                    part = change * gradient.reshape(-1)
                    norm = torch.linalg.vector_norm(part, dtype=torch.float64)
                    one[:, index] = float(norm) ** 2, float(part.sum(dtype=torch.float64)) ** 2
            if np.isfinite(one).all():
                total, batches = total + one, batches + 1
    if not batches:
        raise ValueError("no batch has finite gradients, so nothing is known of the curvature")
    return total
