"""The server's step as a packet, and what it makes of the model that clients hold."""

from __future__ import annotations

from dataclasses import replace
from logging import WARNING

from flwr.common.logger import log

from fl_darex.change import Arrays
from fl_darex.compression.downlink import DownlinkPolicy, StepTerms
from fl_darex.compression.method import State
from fl_darex.compression.update import Before, SparseUpdate
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.reader import read_packet

from ..nonnegative import positive


def packed(
    policy: DownlinkPolicy,
    step: Delta,
    before: Before,
    after: Before,
    terms: StepTerms,
    kept: State,
) -> tuple[tuple[bytes, Arrays] | None, State]:
    """Return a step's packet and the model that clients then hold, and what the policy keeps.

    Where rounding would take a variance to 0 or below, with which a model computes NaN, this packet
    is written in a finer coding. Where none is fine enough the whole model goes, and what the
    policy has kept so far waits on.

    Args:
        policy: What is sent of the step.
        step: From the model that clients hold to what the strategy made of it.
        before: The tensors of the first.
        after: Those of the second.
        terms: What is known of the step.
        kept: What the policy keeps.

    Returns:
        Packet and model, or None: the whole model goes to everybody; and what is kept now.
    """
    watched, codings = positive(before, after), [terms.values, *_finer(terms.values)]
    for values, next_one in zip(codings, [*codings[1:], ""], strict=True):
        rest = {name: one.copy() for name, one in kept.items()} if watched else kept
        try:
            packet, rest = policy.pack(step, replace(terms, values=values), rest)
        except DeltaError as error:
            log(WARNING, "round %s: the whole model goes to all clients: %s", terms.round, error)
            return None, {}
        if packet is None:
            return None, rest
        moved = SparseUpdate.of_packet(read_packet(packet, step.layout)).values(before)
        turned = [name for name in watched if not moved[name].min() > 0]
        if not turned:
            return (packet, moved), rest
        what = f"it is written in {next_one!r}" if next_one else "the whole model goes to all"
        text = (
            "round %s: rounding in %r would take entries of %s to 0 or below, which are above it: "
            "%s; with downlink_values = 'int8' or finer that is rare"
        )
        log(WARNING, text, terms.round, values, turned[:5], what)
    return None, {name: one for name, one in kept.items() if name not in turned}


def _finer(values: str) -> list[str]:
    """Return the codings that are tried where one rounds too much."""
    own = CODINGS[values].bits
    return [name for name in ("int8", "fp16") if CODINGS[name].bits > own]
