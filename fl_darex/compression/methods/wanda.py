"""WANDA on deltas: the changes with the largest magnitude times the norm of their inputs.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024;
"DARE the Extreme", ICLR 2025, Sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from fl_darex.compression.method import Local, Method, lacks
from fl_darex.compression.methods.magnitude import SCOPE
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.options import Option
from fl_darex.positions import ListedMask
from fl_darex.pruning.scores import keep_largest
from fl_darex.pruning.wanda import weighted
from fl_darex.survivors import Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink


class Wanda(Method):
    """Needs activations, so clients with ``DarexMod(norms=...)``."""

    name: ClassVar[str] = "wanda"
    options: ClassVar[Mapping[str, Option]] = {"scope": SCOPE}

    def check(self, uplink: Uplink) -> None:
        """Refuse to compare all tensors: only linear layers have norms."""
        if uplink.options["scope"] == "global":
            raise ValueError(
                "scope = 'global' needs activations of every tensor, which only linear layers "
                "have; with method = 'wanda' set 'layer' or 'row'"
            )

    def mask(self, terms: Terms) -> ListedMask:
        """Return that positions are listed, and of how many entries."""
        return replace(terms.listed, share=terms.uplink.keep)

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return the changes that weigh most."""
        if local.norms is None:
            raise DeltaError(lacks("method 'wanda' weighs changes by activations", "norms"))
        scope = str(terms.uplink.options["scope"])
        score = weighted(delta, local.norms(), scope)
        return keep_largest(delta, terms.uplink.keep, scope, score, terms.listed)
