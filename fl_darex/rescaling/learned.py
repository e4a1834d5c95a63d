"""One q per layer, learned by gradient descent.

The idea of the official code's ``perlayer_opt.py`` (after BitDelta, Liu et al., 2024,
https://arxiv.org/abs/2402.10193): each layer has ``q = (1-p) + |coeff|``, and coeff is trained so
that the pruned model's outputs come near the fine-tuned model's. There is no custom layer: the
model is an ordinary one, and coeff's gradient follows from its weights' gradients at the survivors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fl_darex.activations import evaluating
from fl_darex.rescaling.in_place import RescaledModel
from fl_darex.rescaling.layers import PerTensor
from fl_darex.rescaling.objectives import OutputChange
from fl_darex.rescaling.search import lowest_q
from fl_darex.shown import described

_FIRST = 0.01  # of 1-p: the official 1e-4 at p = .99; at 0 the gradient of |coeff| has no side


@dataclass(frozen=True, eq=False)
class LearnedQ:
    """The result of learning.

    Attributes:
        q: q of each pruned tensor, in canonical order.
        score: Its mean distance on the validation batches.
        tried: All validations as (steps taken, score), the first at q = 1-p.
    """

    __repr__ = described

    q: PerTensor
    score: float
    tried: tuple[tuple[int, float], ...]


def learn_q(
    model: RescaledModel,
    train: OutputChange,
    validation: OutputChange,
    *,
    p: float | None = None,
    steps: int = 200,
    lr: float | None = None,
    every: int = 10,
    patience: int = 5,
) -> LearnedQ:
    """Learn one q in [1-p, 1] per layer, and leave the model at the best one.

    The tensors of one module, such as a weight and its bias, share a q. Each step takes the next
    training batch. All validation batches are scored every few steps; the best q is kept, be it
    the first, and learning ends when it has not got better for ``patience`` validations.

    Args:
        model: Inside its ``with`` block; a pruned tensor that needs no gradient stays at its
            module's q.
        train: Distance to the fine-tuned outputs that is made small; ``distance="squared"`` and
            ``top=5`` is the official choice for decoders.
        validation: The same on other batches, not the test set.
        p: Fraction dropped; None: that of the survivors' seeded mask.
        steps: Steps at most; the learning rate falls to 0 along a cosine.
        lr: Adam's learning rate for coeff; None: 1-p, which is the official 0.01 at p = .99.
        every: Steps between validations.
        patience: Validations without a better score until learning stops.

    Raises:
        ValueError: If an option is out of range, p is not known, nothing can be learned or no score
            is finite.
    """
    _check(steps, every, patience, lr)
    layers = _Layers(model, lowest_q(model.survivors, p))
    optimizer = torch.optim.Adam([layers.coeff], lr=layers.keep if lr is None else lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    model.set(layers.keep)
    best, score = np.full(len(layers.layer), layers.keep, dtype=np.float32), validation()
    tried, waited = [(0, score)], 0
    for step in range(1, steps + 1):
        layers.backward(train, (step - 1) % len(train))
        optimizer.step()
        schedule.step()
        layers.clip()
        if step % every and step < steps:
            continue
        model.set(layers.q())
        tried.append((step, found := validation()))
        if found < score or (math.isfinite(found) and not math.isfinite(score)):
            best, score, waited = layers.q(), found, 0
        elif (waited := waited + 1) >= patience:
            break
    if not math.isfinite(score):
        raise ValueError("no q has a finite score on the validation batches")
    model.set(best)
    return LearnedQ(best, score, tuple(tried))


def _check(steps: int, every: int, patience: int, lr: float | None) -> None:
    for name, value in (("steps", steps), ("every", every), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if lr is not None and not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")


class _Layers:
    """The coefficients, one for each module that has pruned tensors."""

    def __init__(self, model: RescaledModel, keep: float) -> None:
        names = [spec.name for spec in model.survivors.layout.pruned]
        modules = [name.rpartition(".")[0] for name in names]
        number = {module: index for index, module in enumerate(dict.fromkeys(modules))}
        self.keep, self.model = keep, model
        self.layer = torch.tensor([number[module] for module in modules]).long()
        self.trained = {
            index: model.tensors[name]
            for index, name in enumerate(names)
            if model.tensors[name].requires_grad and model.survivors.counts[index]
        }
        if not self.trained:
            raise ValueError(
                "no pruned tensor has survivors and needs a gradient: nothing to learn"
            )
        self.coeff = torch.full((len(number),), _FIRST * keep, dtype=torch.float64)
        self.clip()

    def q(self) -> PerTensor:
        """Return q for each tensor."""
        return np.asarray((self.keep + self.coeff.abs())[self.layer].numpy(), dtype=np.float32)

    def clip(self) -> None:
        """Keep every q at 1 at most."""
        self.coeff.clamp_(self.keep - 1.0, 1.0 - self.keep)

    def backward(self, train: OutputChange, batch: int) -> None:
        """Set the coefficients' gradients from one training batch, at their present q."""
        self.model.set(self.q())
        with evaluating(train.model), torch.enable_grad():
            loss, tensors = train.loss(batch), list(self.trained.values())
            gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        by_inverse = torch.zeros_like(self.coeff)
        for index, gradient in zip(self.trained, gradients, strict=True):
            if gradient is not None:
                slope = self.model.parts[index].slope(gradient)
                by_inverse[self.layer[index]] += slope.double().cpu()
        # d(1/q) = -dq / q^2, dq = sign(coeff) dcoeff
        q = self.keep + self.coeff.abs()
        self.coeff.grad = -by_inverse / q.square() * torch.sign(self.coeff)
