"""Whether inner loops are compiled: where Numba is installed, once there is enough to do.

Results have the same bits with and without. Numba costs a process about half a second and 130 MB,
and the first one on a machine some seconds more. So it is loaded once NumPy or torch would have
spent as much in such loops; from then on all code of that process takes the compiled ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

_WORTH = 0.5  # seconds


@dataclass(frozen=True)
class Kernels:
    """The loops of `fl_darex.kernels`, which says what they take."""

    draw: Callable[..., bool]
    add_halves: Callable[..., int]
    approach: Callable[..., None]


class _State:
    seconds = 0.0
    tried = False
    kernels: Kernels | None = None


def load(seconds: float) -> Kernels | None:
    """Return the compiled loops; None: there are none, or they are not worth it yet.

    Args:
        seconds: What the work at hand would take without them, about. It follows from the work
            alone and is not measured.
    """
    _State.seconds += seconds
    if _State.seconds >= _WORTH and not _State.tried:
        _State.tried = True
        try:
            from fl_darex import kernels
        except Exception as error:  # a Numba that cannot work here costs speed, never a round
            if getattr(error, "name", "") != "numba":  # which is not installed
                log = logging.getLogger("flwr")
                log.warning("Inner loops are not compiled, so slower: %r", error)
        else:
            _State.kernels = Kernels(kernels.draw, kernels.add_halves, kernels.approach)
    return _State.kernels


def loaded() -> Kernels | None:
    """Return the compiled loops if this process has loaded them."""
    return _State.kernels
