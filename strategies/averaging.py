"""The average of a server's models: evaluated and kept, while training goes on from the last one.

It sends nothing, and a random walk's mean has a third of its variance. Polyak and Juditsky,
"Acceleration of stochastic approximation by averaging", 1992; Izmailov et al., "Averaging Weights
Leads to Wider Optima and Better Generalization", UAI 2018, https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fl_darex import checks
from fl_darex.flower.records import to_record, view_arrays

AverageChoice = Literal["none", "uniform", "ema"]


class Average:
    """The average of the models after each round; a `fl_darex.saveable.Saveable`.

    ``average = Average("uniform")``, and ``evaluate_fn=lambda round_, arrays: evaluate(round_,
    average.after(round_, arrays))`` in a strategy's ``start`` evaluates it in place of the last
    model. Weights, and running statistics with them, are averaged in float32, or in float64 where
    they are float64; what is not floating point, such as a counter, is that of the last model.

    Args:
        kind: ``"none"``: the last model itself; ``"uniform"``: the mean of all models since
            ``first``; ``"ema"``: later ones weigh more, ``decay ** age``, over the sum of these
            weights (so the first model does not weigh more than its share).
        first: The round whose model is the first that counts; before it, and for round 0, the
            average is the last model.
        decay: Of ``"ema"``, in [0, 1); 0 is the last model.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If one is outside its range.
    """

    def __init__(
        self, kind: AverageChoice = "uniform", *, first: int = 1, decay: float = 0.9
    ) -> None:
        if kind not in get_args(AverageChoice):
            raise ValueError(f"kind must be one of {list(get_args(AverageChoice))}, got {kind!r}")
        self._kind = kind
        self._first = checks.whole("first", first, "a round, 1 or more", lambda n: n >= 1)
        self._decay = checks.real("decay", decay, "a number in [0, 1)", lambda x: 0 <= x < 1)
        self._count = 0
        self._mean: dict[str, NDArray[Any]] = {}

    def after(self, round_: int, model: ArrayRecord) -> ArrayRecord:
        """Take in the model after a round, and return the average.

        Args:
            round_: The round, from 1; 0 is the model before the first one.
            model: The model; other tensors than before begin a new average.
        """
        if self._kind == "none" or round_ < self._first:
            return model
        arrays = view_arrays(model)
        if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in self._mean.items()}:
            self._count, self._mean = 0, {name: _wide(array) for name, array in arrays.items()}
        self._count += 1
        share = 1 / self._count
        if self._kind == "ema":  # decay**0 over the sum of all weights so far
            share = (1 - self._decay) / (1 - self._decay**self._count)
        for name, mean in self._mean.items():
            if mean.dtype.kind != "f" or self._count == 1:
                mean[...] = arrays[name]
            else:
                new, step = arrays[name], np.zeros_like(mean)
                # What is equal stays: infinite entries, as in a mask of attention, do.
                np.subtract(new, mean, out=step, where=new != mean)
                mean += step * mean.dtype.type(share)
        found = {n: mean.astype(arrays[n].dtype, copy=False) for n, mean in self._mean.items()}
        return to_record({name: found[name] for name in arrays})

    def state(self) -> dict[str, Any]:
        """Return the average so far, and of how many models it is."""
        return {"count": self._count, "mean": {n: a.copy() for n, a in self._mean.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._count = state["count"]
        self._mean = {name: array.copy() for name, array in state["mean"].items()}


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    """Return a place for an average: half precision would lose the share of a late model."""
    narrow = array.dtype.kind == "f" and array.dtype.itemsize < 4
    return np.empty(array.shape, np.float32 if narrow else array.dtype)
