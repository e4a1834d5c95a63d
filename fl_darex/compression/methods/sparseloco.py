"""SparseLoCo: the largest entries of each chunk, in two bits, and an error that fades.

Sarfi, Thérien, Lidin, Belilovsky, "Communication Efficient LLM Pre-training with SparseLoCo", 2025,
https://arxiv.org/abs/2508.15706, Algorithm 1: e = beta e + change; send Q(top_k(e)); e = e - sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_darex.compression.feedback import Feedback
from fl_darex.compression.method import Local, State, with_left_over
from fl_darex.delta import Delta
from fl_darex.masks import ONE
from fl_darex.options import Option
from fl_darex.positions import ListedMask, Positions
from fl_darex.pruning.gather import gather
from fl_darex.pruning.scores import kept_count, largest_of_rows
from fl_darex.survivors import Numbers, Survivors

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms


class SparseLoco(Feedback):
    """The ``1-p`` largest entries of each chunk of the accumulator; p = .97 to .99 in the paper.

    The accumulator stands for the momentum of an outer optimizer, so the server takes the plain
    mean (FedAvg; the paper's outer learning rate is ``server.lr`` of a strategy that has one). Two
    bits a number are ``values = "lookup2"``; any other coding is fed back as well. A chunk is
    ``chunk`` entries of a flattened tensor in a row, or what is left of it; the authors cut
    matrices into squares of 64 x 64, which are as many. At least one entry of each is sent.
    """

    name: ClassVar[str] = "sparseloco"
    options: ClassVar[Mapping[str, Option]] = {
        "decay": Option(
            default=0.95, low=0.0, high=1.0, help="sparseloco: part of the error that is kept"
        ),
        "chunk": Option(
            default=4096, low=1, high=2**30, help="sparseloco: entries among which the largest are"
        ),
    }

    def mask(self, terms: Terms) -> ListedMask:
        """Return that positions are listed, and of how many entries."""
        chunk, keep = int(terms.uplink.options["chunk"]), terms.uplink.keep
        # What is left over of a tensor has one more at most, which any list may have.
        share = min(ONE, -(-_count(chunk, keep) * ONE // chunk))
        return replace(terms.listed, share=share)

    def accumulated(self, delta: Delta, terms: Terms, state: State | None) -> State:
        """Return the accumulator: the change, and what was left, a little less of it."""
        decay = float(terms.uplink.options["decay"])
        for rest in (state or {}).values():
            rest *= rest.dtype.type(decay)
        return with_left_over(delta, state)

    def prune(self, delta: Delta, terms: Terms, local: Local) -> Survivors:
        """Return the largest entries of each chunk."""
        chunk, keep = int(terms.uplink.options["chunk"]), terms.uplink.keep
        where = {
            spec.name: _largest(np.abs(delta.whole(spec.name)), chunk, keep)
            for spec in delta.layout.pruned
        }
        return gather(delta, replace(terms.listed, where=where), 1.0)


def _largest(scores: Numbers, chunk: int, keep: int) -> Positions:
    rows, rest = divmod(scores.size, chunk)
    whole = rows * chunk
    found = [largest_of_rows(scores[:whole], rows, _count(chunk, keep))] if rows else []
    if rest:
        found.append(largest_of_rows(scores[whole:], 1, _count(rest, keep)) + whole)
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def _count(numel: int, keep: int) -> int:
    """Return how many entries of a chunk are sent."""
    return max(1, kept_count(numel, keep))
