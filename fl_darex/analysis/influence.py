"""Influence statistics: what each entry of a delta does to its layer's output.

``c_ij = delta_W_ij x_j`` is the change that input j makes to output i. How far dropping moves an
output depends on two sums over a row, ``S1_i = sum_j c_ij`` and ``S2_i = sum_j c_ij^2``
(`fl_darex.analysis.bounds`); whether DARE or an importance-based method fits a model, on the
magnitudes of delta and c. "DARE the Extreme", ICLR 2025, Sec. 3.2, App. C.6 and Table 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Delta, as_delta
from fl_darex.shown import described

if TYPE_CHECKING:
    from fl_darex.activations import LayerInputs

Vector = NDArray[np.float64]
Tokens = Literal["each", "mean"]

_AT_ONCE = 1 << 18  # entries in float64 at a time: their temporaries stay in cache


@dataclass(frozen=True)
class Magnitude:
    """Mean and variance of absolute values.

    Attributes:
        mean: Their mean; 0 if there are none.
        variance: Their population variance.
        count: How many entries were looked at.
    """

    mean: float
    variance: float
    count: int

    @classmethod
    def of_sums(cls, first: float, second: float, count: int) -> Magnitude:
        """Return the moments for sums of absolute values and of squares."""
        mean = first / max(1, count)
        # Rounding may leave less than nothing where all values are alike.
        return cls(mean, max(0.0, second / max(1, count) - mean**2), count)

    @classmethod
    def pooled(cls, parts: Iterable[Magnitude]) -> Magnitude:
        """Return the moments of several sets taken together, each weighed by its entries."""
        first, second, count = 0.0, 0.0, 0
        for part in parts:
            first += part.mean * part.count
            second += (part.variance + part.mean**2) * part.count
            count += part.count
        return cls.of_sums(first, second, count)


@dataclass(frozen=True, eq=False)
class LayerInfluence:
    """One linear layer with m outputs and n inputs.

    Attributes:
        delta: Magnitude of the ``m * n`` deltas, ``|delta_W_ij|``.
        influence: Magnitude of ``|c_ij|`` over the entries and, with ``tokens="each"``, the tokens.
        first: ``S1_i = sum_j c_ij`` for each output, shape ``(m,)``.
        second: ``S2_i = sum_j c_ij^2``, shape ``(m,)``.
    """

    __repr__ = described

    delta: Magnitude
    influence: Magnitude
    first: Vector
    second: Vector


def influence(
    delta: Delta | Mapping[str, Any],
    inputs: Mapping[str, LayerInputs],
    *,
    tokens: Tokens = "each",
) -> dict[str, LayerInfluence]:
    """Return the influence statistics of every linear layer that is pruned and was reached.

    Only one layer's delta is in memory at a time, as float32. A bias that is pruned, too, enters
    the two sums as one more column with x = 1 (the paper's footnote 1), not the magnitudes.

    The paper does not say which x its Table 8 means. With ``tokens="each"`` every token counts
    for itself, and all is exact: the mean of ``|c_ij|`` is ``|delta_W_ij| E|x_j|``, ``first`` is
    the mean of S1 over the tokens, ``second`` that of S2. With ``tokens="mean"`` x is the signed
    mean over all tokens, as in the authors' code: c is smaller where signs cancel.

    Args:
        delta: A `Delta`, or differences by tensor name.
        inputs: From `fl_darex.activations.layer_inputs`: moments by the name of the weight.
        tokens: ``each`` or ``mean``.

    Raises:
        ValueError: If no layer of ``inputs`` is among the pruned tensors, if one has another
            number of inputs than its weight, or if ``tokens`` is neither.
    """
    if tokens not in ("each", "mean"):
        raise ValueError(f"tokens must be 'each' or 'mean', got {tokens!r}")
    delta = as_delta(delta)
    pruned = {spec.name: spec for spec in delta.layout.pruned}
    found = {}
    for name in (name for name in pruned if name in inputs):
        shape = pruned[name].shape
        if len(shape) != 2 or shape[1] != inputs[name].mean.size:
            raise ValueError(
                f"{name!r} has shape {shape}, its inputs {inputs[name].mean.size} entries; "
                "gather the inputs with the model that the delta belongs to"
            )
        found[name] = _layer(delta.whole(name).reshape(shape), inputs[name], tokens)
        bias = name.removesuffix("weight") + "bias"
        if bias in pruned and pruned[bias].shape == shape[:1]:
            column = delta.whole(bias)
            found[name].first[:] += column
            found[name].second[:] += np.square(column, dtype=np.float64)
    if not found:
        raise ValueError(
            f"none of the layers {sorted(inputs)[:3]} is a pruned tensor of the delta; "
            "names must be those of the model's weights"
        )
    return found


def row_sums(
    matrix: NDArray[np.float32], x: Vector, square: Vector | None = None
) -> tuple[Vector, Vector]:
    """Return S1 and S2 of each row of one layer's delta, shape ``(m,)`` each.

    Args:
        matrix: The delta, shape ``(m, n)``.
        x: The layer's input, shape ``(n,)``; or its mean, for the mean of S1.
        square: The mean of its square, for the mean of S2; None: ``x`` squared.
    """
    square = np.square(x) if square is None else square
    sums = [(rows @ x, np.square(rows) @ square) for rows in _rows(matrix)]
    if not sums:
        return np.zeros(0), np.zeros(0)
    first, second = zip(*sums, strict=True)
    return np.concatenate(first), np.concatenate(second)


def magnitudes(layers: Mapping[str, LayerInfluence]) -> tuple[Magnitude, Magnitude]:
    """Return a model's row of Table 8: ``|delta_W_ij|`` and ``|delta_W_ij x_j|``, all layers."""
    return (
        Magnitude.pooled(layer.delta for layer in layers.values()),
        Magnitude.pooled(layer.influence for layer in layers.values()),
    )


def delta_magnitude(delta: Delta | Mapping[str, Any]) -> Magnitude:
    """Return the magnitude of all pruned entries of a delta, one tensor in memory at a time."""
    delta = as_delta(delta)
    return Magnitude.pooled(_magnitude(delta.whole(spec.name)) for spec in delta.layout.pruned)


def _magnitude(flat: NDArray[np.float32]) -> Magnitude:
    first, second = 0.0, 0.0
    for part in _pieces(flat, _AT_ONCE):
        first += float(np.abs(part).sum())
        second += float(part @ part)
    return Magnitude.of_sums(first, second, flat.size)


def _layer(matrix: NDArray[np.float32], inputs: LayerInputs, tokens: Tokens) -> LayerInfluence:
    each = tokens == "each"
    first, second = row_sums(matrix, inputs.mean, inputs.square if each else None)
    absolute = inputs.absolute if each else np.abs(inputs.mean)
    total = sum(float((np.abs(rows) @ absolute).sum()) for rows in _rows(matrix))
    return LayerInfluence(
        delta=_magnitude(matrix.reshape(-1)),
        influence=Magnitude.of_sums(total, float(second.sum()), matrix.size),
        first=first,
        second=second,
    )


def _rows(matrix: NDArray[np.float32]) -> Iterator[Vector]:
    return _pieces(matrix, max(1, _AT_ONCE // max(1, matrix.shape[1])))


def _pieces(array: NDArray[np.float32], rows: int) -> Iterator[Vector]:
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows].astype(np.float64)
