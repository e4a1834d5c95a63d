"""How survivors are scaled: each stands for its value divided by q.

"DARE the Extreme", ICLR 2025, Sec. 4.1, https://arxiv.org/abs/2410.09344. A fixed q (`rescale`);
one q for all layers by search (`search_q`), on validation data (1/q_v, `Validation`) or on the
change of outputs (1/q_e, `OutputChange`); one q per layer by Eq. 5 (`per_layer_q`, `search_eta`),
by least squares on activations (`mse_q`, `least_squares_q`), or learned (`learn_q`); one q per
tensor by the loss's curvature (`curvature_q`). What needs torch is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fl_darex.rescaling.eq5 import mse_optimal_q, phi
from fl_darex.rescaling.eta import EtaSearch, search_eta
from fl_darex.rescaling.fixed import rescale, resolve_q
from fl_darex.rescaling.layers import per_layer_q
from fl_darex.rescaling.search import QSearch, search_q

if TYPE_CHECKING:
    from fl_darex.rescaling.curvature import curvature_q
    from fl_darex.rescaling.in_place import RescaledModel
    from fl_darex.rescaling.learned import LearnedQ, learn_q
    from fl_darex.rescaling.objectives import OutputChange, Validation
    from fl_darex.rescaling.outputs import least_squares_q, mse_q

_LAZY = {
    "curvature_q": "curvature",
    "RescaledModel": "in_place",
    **dict.fromkeys(("LearnedQ", "learn_q"), "learned"),
    **dict.fromkeys(("OutputChange", "Validation"), "objectives"),
    **dict.fromkeys(("least_squares_q", "mse_q"), "outputs"),
}

__all__ = [
    "EtaSearch",
    "LearnedQ",
    "OutputChange",
    "QSearch",
    "RescaledModel",
    "Validation",
    "curvature_q",
    "learn_q",
    "least_squares_q",
    "mse_optimal_q",
    "mse_q",
    "per_layer_q",
    "phi",
    "rescale",
    "resolve_q",
    "search_eta",
    "search_q",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
