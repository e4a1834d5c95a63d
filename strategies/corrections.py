"""What is done to a mean before the strategy is given it: q is chosen, and signs are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common.logger import log

from fl_darex.change import Arrays
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.rescaling.rules import GROUP_SERVER_VALIDATION
from fl_darex.survivors import Q

from .nonnegative import keep_nonnegative
from .reply import Reply
from .sent import Sent
from .server_q import Validate, choose_q


class Corrections:
    """Changes the mean of a round, in place.

    Args:
        uplink: What is asked of clients.
        validate: Returns the loss by which the server chooses q; None: it does not.
        send_whole: Called with the names of tensors that are to be sent whole from now on.

    Attributes:
        q: What survivors were divided by; where it is chosen, by clients or for each tensor, the
            mean over the last round's.
    """

    def __init__(
        self, uplink: Uplink, validate: Validate | None, send_whole: Callable[[list[str]], None]
    ) -> None:
        self._uplink, self._validate, self._send_whole = uplink, validate, send_whole
        self.q = uplink.divisor
        self._whole: set[str] = set()  # what was said of

    def __call__(self, used: list[Reply], mean: Arrays, sent: Sent) -> None:
        """Correct a mean.

        Args:
            used: The replies in it.
            mean: What they say together of the model; empty: there is none.
            sent: What that is a change of.
        """
        found = [reply.update.q for reply in used if reply.update.q is not None]
        if self._validate is not None and found:
            first = self._uplink.divisor
            grouped = self._uplink.q == GROUP_SERVER_VALIDATION
            q = choose_q(self._validate, sent.arrays, mean, sent.layout, first, grouped)
            self.q, found = float(np.mean(q)), [q]
            _say([(sent.layout, q)])
        elif self._uplink.rule and found:
            self.q = float(np.mean([np.mean(q) for q in found]))
            packed = [reply.update for reply in used if reply.packed]
            _say((one.layout, one.q) for one in packed)
        if not found or not mean:
            return
        # The smallest of all, so that what is taken back lies between what clients have.
        least = min(float(np.min(one)) for one in found)
        names = keep_nonnegative(sent.arrays, mean, sent.layout, least, self._uplink.values)
        if names := [name for name in names if name not in self._whole]:
            self._whole.update(names)
            text = "rescaling would make entries of %s negative, which has none; it goes whole now"
            log(WARNING, text, names)
            self._send_whole(names)

    def state(self) -> dict[str, Any]:
        """Return q, and which tensors are sent whole for their sign."""
        return {"q": self.q, "whole": sorted(self._whole)}

    def restore(self, state: dict[str, Any]) -> None:
        """Know what `state` said."""
        self.q, self._whole = state["q"], set(state["whole"])


def _say(found: Iterable[tuple[Layout, Q | None]]) -> None:
    """Say between which tensors q lies, each with its mean over the packets."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for layout, q in found:
        if isinstance(q, np.ndarray):
            for spec, one in zip(layout.pruned, q.tolist(), strict=True):
                by_name[spec.name].append(one)
    ordered = sorted((float(np.mean(some)), name) for name, some in by_name.items())
    if ordered:
        (low, first), (high, last) = ordered[0], ordered[-1]
        log(INFO, "q by tensor: from %.3g (%s) to %.3g (%s)", low, first, high, last)
