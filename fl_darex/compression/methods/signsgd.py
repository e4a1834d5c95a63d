"""signSGD with majority vote: a sign for each entry, and the sign of most decides.

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex
Problems", ICML 2018, https://arxiv.org/abs/1802.04434, Algorithm 3, and Bernstein, Zhao,
Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is Communication Efficient and Fault
Tolerant", ICLR 2019, https://arxiv.org/abs/1810.05291.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_darex.change import Arrays, added
from fl_darex.compression.method import Local, Method
from fl_darex.compression.update import Before, Update
from fl_darex.compression.weighted_sum import Part, weighted_mean
from fl_darex.delta import Delta, Layout
from fl_darex.masks import ONE, SHARED, words
from fl_darex.options import Option
from fl_darex.positions import Mask
from fl_darex.pruning import draw
from fl_darex.survivors import Survivors
from fl_darex.wire.codings.coding import noise_of

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink


class SignSgd(Method):
    """Every entry moves by plus or minus ``step``, as more clients' changes did.

    The papers send ``sign(g)`` of a gradient, and the server answers with ``sign(sum sign(g))``, by
    which all step: ``x - eta * that``. Here the sign is that of a round's change, -g's. How far
    clients went is lost, so the step is no learning rate of theirs and has to be set: ``step``,
    the papers' eta. One client has one vote, however many examples it has. No bit says 0: an entry
    that did not change votes by a seeded coin, and another decides where votes are equal. Signum's
    momentum is not kept from round to round: a client's optimizer begins anew in each. Tensors that
    are sent whole are averaged as always. One bit down is ``downlink = "update"`` in the same
    coding: all its numbers are of one magnitude.
    """

    name: ClassVar[str] = "signsgd"
    options: ClassVar[Mapping[str, Option]] = {
        "step": Option(
            default=1e-3, above=0.0, high=1e3, help="signsgd: by how much a vote moves an entry"
        )
    }
    adds_up: ClassVar[bool] = False

    def check(self, uplink: Uplink) -> None:
        """Refuse to drop votes, to divide them, and more than a bit for one."""
        if uplink.q not in ("dare", 1):
            raise ValueError(f"q = {uplink.q!r} divides numbers; method = 'signsgd' counts votes")
        if uplink.keep != ONE:
            raise ValueError(
                f"p = {1 - uplink.keep / ONE:g} drops entries, and with method = 'signsgd' each "
                "has a vote: set p = 0"
            )
        if uplink.values != "sign":
            raise ValueError(
                f"values = {uplink.values!r} takes more than the one bit that a vote of method = "
                "'signsgd' is: set values = 'sign'"
            )

    def mask(self, terms: Terms) -> Mask:
        """Return that all entries are there."""
        return terms.drawn

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return all changes; those that are 0 as 0 or -0, by a coin."""
        found = draw(delta, terms.drawn)
        numbers, still = found.numbers, found.numbers == 0
        numbers[still] = np.copysign(numbers[still], _coins(terms, terms.slot, int(still.sum())))
        return replace(found, numbers=numbers)

    def combine(
        self, before: Before, layout: Layout, parts: Sequence[Part], terms: Terms
    ) -> tuple[Arrays | None, list[Part]]:
        """Return the model after the vote."""
        mean, odd = weighted_mean(before, layout, parts)
        if mean is None:
            return None, odd
        step = np.float32(terms.uplink.options["step"])
        ballots = [_ballot(part.update, before, layout) for part in parts if part.weight > 0]
        for spec, *votes in zip(layout.pruned, *ballots, strict=True):
            total: NDArray[np.int32] = np.sum(votes, axis=0, dtype=np.int32)
            if (even := total == 0).any():
                # The same for tensors that are one under several names.
                total[even] = _coins(terms, SHARED, spec.numel)[even]
            mean[spec.name] = added(before[spec.name], np.sign(total).astype(np.float32) * step)
        return mean, []


def _ballot(update: Update, before: Before, layout: Layout) -> Iterator[NDArray[np.int8]]:
    """Yield how a client votes on each pruned tensor of a layout: +1, -1, and 0 of whole tensors.

    A tensor that is tied in its packet votes as the one that it equals.
    """
    own = {spec.name: spec for spec in update.layout}
    ends = np.cumsum([spec.numel for spec in update.layout.pruned]).tolist()
    end_of = {spec.name: end for spec, end in zip(update.layout.pruned, ends, strict=True)}
    whole = update.values(before) if update.mask is None else {}
    for spec in layout.pruned:
        name = own[spec.name].source or spec.name
        if update.mask is None:
            after, base = whole[name].reshape(-1), before[name].reshape(-1)
            yield (after > base).astype(np.int8) - (after < base)
            continue
        end = end_of.get(name)  # none: it equals a tensor that is sent whole
        numbers = update.dense()[name] if end is None else update.numbers(end - spec.numel, end)
        yield np.where(np.signbit(numbers), np.int8(-1), np.int8(1))


def _coins(terms: Terms, sender: int, count: int) -> NDArray[np.int8]:
    """Return +1 and -1, seeded by the run, the round and who throws."""
    drawn = words(noise_of(terms.uplink.seed, terms.round, sender), 0, count + count % 2)[:count]
    return np.where(drawn >> np.uint32(31), np.int8(-1), np.int8(1))
