"""The search for eta: one number that sets q of all layers ("DARE the Extreme", Alg. 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fl_darex.delta import Delta, as_delta
from fl_darex.rescaling.eq5 import GAMMA
from fl_darex.rescaling.layers import Compat, Form, Inputs, PerLayer, PerTensor
from fl_darex.rescaling.search import Line, Method, Objective, Rescalable, Tried, move_to_best
from fl_darex.shown import described

Spacing = Literal["linear", "log"]


@dataclass(frozen=True, eq=False)
class EtaSearch:
    """The result of a search for eta.

    Attributes:
        q: q of each pruned tensor, in canonical order.
        eta: The eta that they follow from.
        score: What the objective said of it.
        tried: All (eta, score) in the order in which they were tried.
    """

    __repr__ = described

    q: PerTensor
    eta: float
    score: float
    tried: Tried


def search_eta(
    model: Rescalable,
    objective: Objective,
    delta: Delta | Mapping[str, Any],
    inputs: Mapping[str, Inputs],
    p: float,
    *,
    step: float = 0.1,
    rounds: int = 10,
    spacing: Spacing = "linear",
    method: Method = "grid",
    form: Form = "paper",
    compat: Compat = None,
    gamma: float = GAMMA,
) -> EtaSearch:
    """Return the eta with the best score and its per-layer q, and leave the model there.

    The candidates are ``eta_t = t*step``, t = 1 .. rounds, the same for all layers. Eq. 5 has eta
    grow as deltas shrink and 1-p does, so where neither is known beforehand ``spacing="log"`` finds
    the order of magnitude: ``eta_t = step * 2**(t-1)``. With
    `OutputChange` the result is the paper's per-layer 1/q_e, with `Validation` its 1/q_v. Sums over
    the deltas are taken once for all candidates.

    Args:
        model: The model to move; enter a `RescaledModel` first.
        objective: As in `search_q`.
        delta: What fine-tuning changed, as in `per_layer_q`; not made of the tensors that
            ``model`` moves, which hold the base's values by now.
        inputs: Inputs of the linear layers, as in `per_layer_q`.
        p: Fraction dropped, in [0, 1).
        step: The grid's d_eta.
        rounds: The grid's N, at least 1.
        spacing: ``"linear"``, as the paper, or ``"log"``.
        method: As in `search_q`.
        form: As in `per_layer_q`.
        compat: As in `per_layer_q`.
        gamma: As in `per_layer_q`.

    Raises:
        ValueError: If an option is out of range, or no score is finite.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds!r}")
    if spacing not in ("linear", "log"):
        raise ValueError(f"spacing must be 'linear' or 'log', got {spacing!r}")
    layers = PerLayer(as_delta(delta), inputs, p, compat)

    def eta_at(x: float) -> float:
        return x if spacing == "linear" else step * 2.0**x

    def q_at(x: float) -> PerTensor:
        return layers.q(eta_at(x), form, gamma)

    line = Line(step, step, rounds - 1) if spacing == "linear" else Line(0.0, 1.0, rounds - 1)
    tried, (x, best) = move_to_best(model, objective, q_at, line, method)
    return EtaSearch(q_at(x), eta_at(x), best, tuple((eta_at(x), value) for x, value in tried))
