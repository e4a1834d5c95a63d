"""Whether inner loops are compiled: where Numba is installed, once there is enough to do.

Results have the same bits with and without. Numba costs a process about half a second and 130 MB,
and the first one on a machine some seconds more, so only large sums ask for it. From then on all
code of that process that has such a loop takes the compiled one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

_WORTH = 1 << 22
"""Survivors of one sum; NumPy takes about 60 ms."""


@dataclass(frozen=True)
class Kernels:
    """The loops of `fl_darex.kernels`, which says what they take."""

    draw: Callable[..., bool]
    add_halves: Callable[..., int]


class _State:
    tried = False
    kernels: Kernels | None = None


def load(survivors: int) -> Kernels | None:
    """Return the compiled loops for a sum of so many survivors; None: NumPy's are to be used."""
    if survivors >= _WORTH and not _State.tried:
        _State.tried = True
        try:
            from fl_darex import kernels
        except ModuleNotFoundError as error:
            if error.name != "numba":
                raise
        except Exception as error:  # a Numba that cannot work here costs speed, never a round
            logging.getLogger("flwr").warning("Large sums are not compiled, so slower: %r", error)
        else:
            _State.kernels = Kernels(kernels.draw, kernels.add_halves)
    return _State.kernels


def loaded() -> Kernels | None:
    """Return the compiled loops if this process has loaded them."""
    return _State.kernels
