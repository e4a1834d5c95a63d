"""``update``: everything that changed, in the form that takes the fewest bytes.

A step is zero outside what clients sent, so its positions follow from their masks; where it is not
(momentum, a client without the mod), non-zero positions are listed or everything is sent, whichever
is smaller. What EDEN's few bits round away is kept, and goes when an entry is sent again; what
other codings round away is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl_darex.compression.downlink.policy import DownlinkPolicy, StepTerms, not_delivered
from fl_darex.compression.method import State, with_left_over
from fl_darex.delta import Delta
from fl_darex.masks import ONE, SHARED
from fl_darex.positions import ListedMask, Mask, SeededMask, united
from fl_darex.pruning.gather import gather, gather_from
from fl_darex.survivors import Survivors
from fl_darex.wire.codings import CODINGS, Coding, nature_of
from fl_darex.wire.packet import encode


class WholeStep(DownlinkPolicy):
    """Sends the step itself."""

    name: ClassVar[str] = "update"
    versions: ClassVar[bool] = True

    def pack(self, step: Delta, terms: StepTerms, state: State) -> tuple[bytes, State]:
        """Return the whole step."""
        survivors = _survivors(step, terms, CODINGS[terms.values])
        if not (state or nature_of(terms.values).nmse):
            return encode(survivors, terms.values, base=terms.version), {}
        whole = with_left_over(step, state)
        survivors = gather_from(whole, step, survivors.mask)
        packet = encode(survivors, terms.values, base=terms.version)
        return packet, not_delivered(whole, step, packet)


def _survivors(step: Delta, terms: StepTerms, coding: Coding) -> Survivors:
    layout = step.layout
    count = sum(int(np.count_nonzero(step.changed(spec.name))) for spec in layout.pruned)
    numel = sum(spec.numel for spec in layout.pruned)
    listed = coding.size(count) + count * _entropy(count, numel) / 8
    found = _united(step, terms.masks or (), coding, count, min(listed, coding.size(numel)))
    if found is not None:
        return found
    if listed < coding.size(numel):
        where = {spec.name: np.flatnonzero(step.changed(spec.name)) for spec in layout.pruned}
        return gather(step, ListedMask(where, terms.seed, terms.round, SHARED), 1.0)
    return gather(step, SeededMask(terms.seed, terms.round, SHARED, ONE), 1.0)


def _united(
    step: Delta, sent: Sequence[Mask], coding: Coding, count: int, limit: float
) -> Survivors | None:
    """Return the step where clients sent something; None if that is not all, or larger."""
    mask = united(sent)
    if mask is None:
        return None
    found = gather(step, mask, 1.0)
    size = coding.size(found.count) + len(mask.section(step.layout))
    return found if np.count_nonzero(found.numbers) == count and size <= limit else None


def _entropy(count: int, numel: int) -> float:
    """Return the bits that a position takes when ``count`` of ``numel`` are listed."""
    share = count / numel if numel else 0.0
    if not 0.0 < share < 1.0:
        return 0.0
    return float(-np.log2(share) - (1 - share) / share * np.log2(1 - share))
