"""Tensors without a negative entry, such as variances, keep it that way.

A survivor stands for ``change / q``, so that a variance that goes from 1 to .5 arrives as -49 at
p = .99; rounding can do the same on a smaller scale. Names do not tell what must not be negative:
torch says ``running_var``, Keras ``moving_variance``, flax ``batch_stats.var``, a list of arrays
nothing at all. The values do: ``before + q * (mean - before)`` lies between what clients hold, and
where that has no negative entry, no client has asked for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_darex.change import Array, Arrays, wide
from fl_darex.compression.update import Before
from fl_darex.delta import Layout
from fl_darex.survivors import Q
from fl_darex.wire.codings import CODINGS, Coding, dense_parts, type_of
from fl_darex.wire.codings.coding import noise_of
from fl_darex.wire.codings.floats import FLOATS

_PROBE = np.linspace(-1, 1, 256, dtype=np.float32)
_ROUND_OFF = 8  # steps: a few operations long
_COARSE = 0.1  # of the largest number: from here on little ones may be of either sign


def keep_nonnegative(
    before: Before, mean: Arrays, layout: Layout, q: Q, values: str = "fp16"
) -> list[str]:
    """Take back negative entries that neither the model nor any client had.

    A pruned tensor is put where the step leads that is not rescaled; what rounding took below 0 of
    one that is sent whole goes back to a small number. A tensor that has negative entries before,
    or gets them from a client, stays as it is.

    Args:
        before: The tensors that the clients were sent.
        mean: What their replies, packets among them, say together; changed in place.
        layout: The layout of both.
        q: The smallest q of the round's packets, or the smallest for each pruned tensor.
        values: The coding of the packets' numbers.

    Returns:
        The pruned tensors that were changed, which had better be sent whole from now on.
    """
    changed, coding = [], CODINGS[values]
    for index, spec in enumerate(layout.pruned):
        base, after = before[spec.name], mean[spec.name]
        if _turned(base, after):
            kind = wide(base.dtype)
            scale = kind.type(q if isinstance(q, float | int) else q[index])
            step = (after.astype(kind) - base) * scale
            unscaled, loss = base + step, _loss(coding, kind)
            if _tells(base, loss) and -unscaled.min() <= loss * np.abs(step).max():
                mean[spec.name] = np.maximum(unscaled, 0).astype(after.dtype).reshape(after.shape)
                changed.append(spec.name)
    for beside, specs in dense_parts(values, layout.dense):
        moved = {spec.name: before[spec.name] - mean[spec.name] for spec in specs}
        for spec in specs:
            base, after = before[spec.name], mean[spec.name]
            if not _turned(base, after):
                continue
            # Floating-point numbers are rounded one by one, so each is held against its own
            # change; others by what the largest beside them needs, which may be another tensor's.
            own, loss = moved[spec.name], _loss(beside, wide(base.dtype))
            if beside not in FLOATS:
                own = np.max([np.abs(one).max(initial=0) for one in moved.values()])
            if _tells(base, loss) and (-after <= loss * own).all():
                # What clients hold there is between 0 and what rounding may take away. A variance
                # of 0 would blow up what is divided by it; one that is too large does not.
                most = np.minimum(base, (loss * own).astype(base.dtype))
                mean[spec.name] = np.where(after < 0, most, after)
    return changed


def positive(*models: Before) -> list[str]:
    """Return the floating-point tensors that are above 0 everywhere in all of these models."""
    return [
        name
        for name, array in models[0].items()
        if array.dtype.kind == "f" and array.size and all(_above_0(one[name]) for one in models)
    ]


def _above_0(array: Array) -> bool:
    return bool(array.reshape(-1)[:256].min() > 0 and array.min() > 0)


def _turned(base: Array, after: Array) -> bool:
    """Return whether a tensor had no negative entry and has one now."""
    if not base.size or base.reshape(-1)[:256].min() < 0:  # true of nearly all weights
        return False
    return bool(after.min() < 0 <= base.min())


def _tells(base: Array, loss: float) -> bool:
    """Return whether a model without negative entries says that there must be none.

    Where numbers keep hardly more than their sign, a client's own negative entry looks like one
    that rounding made. Zeros, as of LoRA's B, a fresh head's bias or a new model's biases, then say
    nothing; what is above 0 everywhere, as variances are, still does.
    """
    return loss < _COARSE or bool(base.min() > 0)


def _loss(coding: Coding, kind: np.dtype[Any]) -> float:
    """Return how far a number is moved, as a part of the largest one beside it.

    Args:
        coding: How it is written.
        kind: The type in which numbers are added.
    """
    exponent = coding.exponent(np.float32(1))
    data = memoryview(coding.write(_PROBE, exponent, noise_of(0, 0, 0)))
    read = coding.read(data, _PROBE.size, exponent, 0, _PROBE.size)
    step = max(float(np.finfo(one).eps) for one in (kind, type_of(coding)))
    return max(_ROUND_OFF * step, 2 * float(np.abs(read - _PROBE).max()))
