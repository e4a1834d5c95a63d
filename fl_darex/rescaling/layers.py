"""One q per layer by Eq. 5 ("DARE the Extreme", App. C.9 and E.2, Alg. 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Delta, Layout, TensorSpec, as_delta
from fl_darex.rescaling import fp16
from fl_darex.rescaling.eq5 import GAMMA, Vector, check_eta, check_p, grid_eq5, minimise_eq5
from fl_darex.rescaling.fixed import keep_rate

Form = Literal["paper", "closed"]
Compat = Literal["fp16"] | None
PerTensor = NDArray[np.float32]
Sums = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


class Inputs(Protocol):
    """What a linear layer was given; see `fl_darex.activations.LayerInputs`."""

    @property
    def mean(self) -> Vector:
        """Signed mean of each input, shape ``(inputs,)``."""


def per_layer_q(
    delta: Delta | Mapping[str, Any],
    inputs: Mapping[str, Inputs],
    p: float,
    *,
    eta: float,
    form: Form = "paper",
    compat: Compat = None,
    gamma: float = GAMMA,
    step: float | None = None,
) -> PerTensor:
    """Return q for each pruned tensor, in canonical order, by Eq. 5.

    With x the mean of a linear layer's inputs, ``c_ij = delta_W_ij x_j``; a bias is one more column
    with x = 1. Each output has the q that minimises the two-sided Eq. 5, a layer the mean over its
    outputs. A bias takes its weight's q, every other tensor the mean of the layers'. Outputs
    and layers without a delta do not count; if there are no others, q is 1-p.

    Args:
        delta: What fine-tuning changed.
        inputs: Inputs of the linear layers by weight name, from `fl_darex.activations.layer_inputs`
            on the fine-tuned model.
        p: Fraction dropped, in [0, 1).
        eta: Weighs noise against bias: higher means a larger q. `search_eta` finds it.
        form: ``"paper"``: the best q of a grid; ``"closed"``: the exact minimiser.
        compat: ``"fp16"`` returns what the official code computes in half precision, whatever
            ``form``; see `fl_darex.rescaling.fp16`.
        gamma: Probability of failure in Eq. 5.
        step: The grid's dq; None: a tenth of 1-p, which at p = .99 is the official 0.001.

    Raises:
        ValueError: If an option is out of range, or no linear layer is among the inputs.
    """
    return PerLayer(as_delta(delta), inputs, p, compat).q(eta, form, gamma, step)


class PerLayer:
    """The sums of all layers, from which q follows for any eta without another pass.

    Arguments are those of `per_layer_q`; the work is one pass over the linear layers' deltas.
    """

    def __init__(
        self, delta: Delta, inputs: Mapping[str, Inputs], p: float, compat: Compat = None
    ) -> None:
        if compat not in (None, "fp16"):
            raise ValueError(f"compat must be None or 'fp16', got {compat!r}")
        self.layout, self.p, self.compat = delta.layout, check_p(p), compat
        layers = linear_layers(delta.layout, inputs)
        if compat == "fp16":
            layers = [spec for spec in layers if fp16.is_layer(spec.name)]
        if not layers:
            raise ValueError(
                "no pruned linear layer is among the inputs; are their names those of the delta? "
                f"inputs: {sorted(inputs)[:3]}, delta: {[s.name for s in delta.layout.pruned][:3]}"
            )
        take = fp16.half_sums if compat == "fp16" else _sums
        self.sums: Sums = {s.name: take(influences(delta, s, inputs[s.name].mean)) for s in layers}

    def q(
        self, eta: float, form: Form = "paper", gamma: float = GAMMA, step: float | None = None
    ) -> PerTensor:
        """Return q for each pruned tensor."""
        check_eta(eta, gamma)
        rows = self._rows(form, {"p": self.p, "eta": eta, "gamma": gamma}, step)
        found = {}
        for name, (s1, s2) in self.sums.items():
            counted = np.ones(s1.shape, dtype=bool) if self.compat else np.asarray(s2) > 0
            if counted.any():
                found[name] = float(rows(s1[counted], s2[counted]).mean())
        return spread(self.layout, found, keep_rate(self.p))

    def _rows(
        self, form: Form, options: dict[str, float], step: float | None
    ) -> Callable[[NDArray[Any], NDArray[Any]], Vector]:
        if self.compat == "fp16":
            return lambda s1, s2: fp16.official_q(s1, s2, **options)
        if form == "closed":
            return lambda s1, s2: minimise_eq5(np.abs(s1), s2, **options)
        if form == "paper":
            size = (1.0 - self.p) / 10.0 if step is None else step
            return lambda s1, s2: grid_eq5(s1, s2, **options, step=size)
        raise ValueError(f"form must be 'paper' or 'closed', got {form!r}")


def linear_layers(layout: Layout, names: Mapping[str, Any]) -> list[TensorSpec]:
    """Return the pruned matrices among ``names``, in canonical order."""
    return [spec for spec in layout.pruned if spec.name in names and len(spec.shape) == 2]


def bias_of(weight: str) -> str:
    """Return the name of a linear layer's bias."""
    return weight.removesuffix("weight") + "bias"


def influences(delta: Delta, spec: TensorSpec, mean: Vector) -> NDArray[np.float32]:
    """Return ``c_ij = delta_W_ij x_j``, shape ``(outputs, inputs)``; a pruned bias is a column.

    Raises:
        ValueError: If the layer has another number of inputs.
    """
    if mean.shape != spec.shape[1:]:
        raise ValueError(f"{spec.name!r} has {spec.shape[1]} inputs, statistics {mean.shape}")
    c = delta.whole(spec.name).reshape(spec.shape) * mean.astype(np.float32)
    if bias_of(spec.name) in {other.name for other in delta.layout.pruned}:
        c = np.concatenate([c, delta.whole(bias_of(spec.name))[:, None]], axis=1)
    return c


def _sums(c: NDArray[np.float32]) -> tuple[Vector, Vector]:
    squares = np.einsum("ij,ij->i", c, c, dtype=np.float64)
    return np.asarray(c.sum(axis=1, dtype=np.float64)), np.asarray(squares)


def spread(layout: Layout, layers: Mapping[str, float], keep: float) -> PerTensor:
    """Return q for each pruned tensor: a layer's own, a bias its weight's, all others the mean.

    Args:
        layout: The tensors.
        layers: q by the name of the layer's weight.
        keep: The smallest q allowed, and that of all tensors if there is no layer.
    """
    mean = float(np.mean(list(layers.values()))) if layers else keep
    known = {bias_of(name): q for name, q in layers.items()} | dict(layers)
    found = [max(keep, known.get(spec.name, mean)) for spec in layout.pruned]
    return np.array(found, dtype=np.float32)
