"""Which masks the clients of a round are told to draw, and how much the clients agree.

`Masks` measures rho each round (`fl_darex.compression.rho`). With ``mask="auto"`` it also acts on
it: rounds begin with independent masks; one mask is shared where that adds at most a tenth to their
noise, because the way down is then as small as the way up; masks that share no entry are taken
where they save a tenth of it or more and as many fit side by side as there are clients. These tell
nothing of rho, so every fourth of their rounds has independent ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.common.logger import log

from fl_darex.change import Arrays
from fl_darex.compression.choices import MaskChoice
from fl_darex.compression.rho import Rho, effective, meeting, noise, rho
from fl_darex.compression.uplink import AUTO, Uplink
from fl_darex.compression.weighted_sum import Mean
from fl_darex.masks import places
from fl_darex.wire.codings import nature_of

from .aggregation import Adjust
from .reply import Reply
from .sent import Sent

_TENTH = 0.1
_MEMORY = 2  # measurements that count: rho falls as training goes on
_EVERY = 4  # of rounds with disjoint masks, which say nothing of rho, one measures instead
_ERRORS = 2.0  # standard errors by which a choice has to hold


class Masks:
    """Names the mask of each round, and says what rho was in the last one.

    Args:
        uplink: What is asked of clients; where its mask is ``"auto"``, the mask is chosen.

    Attributes:
        rho: Of the last round, in [0, 1], over the entries that are pruned; None where packets do
            not tell: fewer than two, disjoint masks, one q a tensor, sign, replies that are not
            averaged here, or seen only as a sum.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink, self._chooses = uplink, uplink.mask == AUTO
        self._mask: MaskChoice = "client" if self._chooses else uplink.mask
        self._apart = self._chooses and _may_be_apart(uplink)
        self._drawn: MaskChoice = self._mask  # of the round that goes on
        self._measured: list[Rho] = []
        self._blind = 0  # rounds since the last measurement
        self._said = False
        self._found: Rho | None = None
        self._weights: dict[int, float] = {}
        self.rho: float | None = None

    def begin(self, slots: Sequence[int]) -> MaskChoice:
        """Return the mask of a round that begins.

        Args:
            slots: Of the clients that are asked.
        """
        self._found, self.rho = None, None
        looks = self._chooses and self._mask == "disjoint" and self._blind >= _EVERY - 1
        self._drawn = "client" if looks else self._mask
        many = places(self._uplink.keep)
        groups = {slot // many for slot in slots}
        if self._drawn == "disjoint" and len(groups) > 1 and len(slots) <= many and not self._said:
            self._said = True
            text = (
                "mask 'disjoint': slots 0 to %s, %s to %s and so on share no entry; this round's "
                "%s clients are of %s such groups, between which masks are independent"
            )
            log(INFO, text, many - 1, many, 2 * many - 1, len(slots), len(groups))
        return self._drawn

    def before(self, adjust: Adjust) -> Adjust:
        """Return what looks at a mean, and then adjusts it."""

        def both(used: list[Reply], mean: Arrays, sent: Sent) -> None:
            self.measure(used, mean)
            adjust(used, mean, sent)

        return both

    def measure(self, used: Sequence[Reply], mean: Arrays) -> None:
        """Look at a mean before anything is done to it; the last look of a round counts."""
        uplink, norms = self._uplink, mean.norms if isinstance(mean, Mean) else None
        meet = meeting(self._drawn, uplink.keep)
        self._found = None
        nature = nature_of(uplink.values)
        # Where the mean is not that of the round's changes, packets say nothing of rho.
        if norms is None or meet is None or not uplink.how.seeded or nature.biased:
            return
        if uplink.mask_first or uplink.how.feeds_back or uplink.scale != "unbiased":
            return
        self._found = rho(norms, uplink.keep, meet, nature.nmse)
        packed = [reply for reply in used if reply.packed]
        self._weights = {reply.terms.slot: reply.part.weight for reply in packed}

    def end(self, round_: int) -> None:
        """Say what was measured in a round, and choose the mask of the next one."""
        self._blind += 1
        if self._found is None:
            return
        self._blind, self.rho = 0, self._found.bounded
        text = "round %s: rho = %.3g, give or take %.1g"
        log(INFO, text, round_, self.rho, self._found.error)
        if not self._chooses:
            return
        self._measured = [*self._measured, self._found][-_MEMORY:]
        known = _together(self._measured)
        if (best := self._best(known)) != self._mask:
            text = "round %s: mask %r after %r: rho is about %.3g, of %s clients"
            log(INFO, text, round_ + 1, best, self._mask, known.bounded, len(self._weights))
            self._mask = best

    def state(self) -> dict[str, Any]:
        """Return the mask, and the measurements that it was chosen by."""
        measured = [tuple(one) for one in self._measured]
        return {
            "mask": self._mask,
            "measured": measured,
            "blind": self._blind,
            "rho": self.rho,
            "said": self._said,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Know what `state` said."""
        self._mask, self._blind, self._said = state["mask"], state["blind"], state["said"]
        self._measured, self.rho = [Rho(*one) for one in state["measured"]], state["rho"]

    def _best(self, known: Rho) -> MaskChoice:
        """Return the mask whose noise is worth its bytes, as far as is known."""
        uplink, slots = self._uplink, list(self._weights)
        clients, sure = effective(list(self._weights.values())), _ERRORS * known.error
        low, high = (Rho(known.value + by, 0.0).bounded for by in (-sure, sure))
        alone = noise("client", uplink.keep, clients, high)
        if noise("round", uplink.keep, clients, high) <= (1.0 + _TENTH) * alone:
            return "round"
        many = places(uplink.keep)
        if len(slots) > many or not self._apart:
            return "client"
        groups = [slot // many for slot in slots]
        pairs = len(slots) * (len(slots) - 1)
        beside = sum(groups.count(one) - 1 for one in groups) / pairs
        apart = noise("disjoint", uplink.keep, clients, low, beside)
        return "disjoint" if apart <= (1.0 - _TENTH) * alone else "client"


def _may_be_apart(uplink: Uplink) -> bool:
    """Return whether disjoint masks go with all other settings."""
    try:
        replace(uplink, mask="disjoint")
    except ValueError:
        return False
    return True


def _together(measured: Sequence[Rho]) -> Rho:
    """Return what several measurements say, each by how sure it is."""
    parts = [1.0 / max(one.error, 1e-9) ** 2 for one in measured]
    value = sum(part * one.value for part, one in zip(parts, measured, strict=True)) / sum(parts)
    return Rho(value, sum(parts) ** -0.5)
