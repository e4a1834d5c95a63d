"""The server's step as a packet, and what it makes of the model that clients hold."""

from __future__ import annotations

from logging import WARNING

from flwr.common.logger import log

from fl_darex.change import Arrays
from fl_darex.compression.downlink import DownlinkPolicy, StepTerms
from fl_darex.compression.method import State
from fl_darex.compression.update import Before, SparseUpdate
from fl_darex.delta import Delta
from fl_darex.errors import DeltaError
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

    Where rounding would take a variance to 0 or below, with which a model computes NaN, the whole
    model goes, and what the policy has kept so far waits on.

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
    watched = positive(before, after)
    so_far = {name: rest.copy() for name, rest in kept.items() if watched}
    try:
        packet, kept = policy.pack(step, terms, kept)
    except DeltaError as error:
        log(WARNING, "round %s: the whole model goes to all clients: %s", terms.round, error)
        return None, {}
    if packet is None:
        return None, kept
    moved = SparseUpdate.of_packet(read_packet(packet, step.layout)).values(before)
    if turned := [name for name in watched if not moved[name].min() > 0]:
        text = (
            "round %s: the whole model goes to all clients: rounding in %r would take entries of "
            "%s to 0 or below, which are above it; take downlink_values = 'int8' or finer"
        )
        log(WARNING, text, terms.round, terms.values, turned[:5])
        return None, {name: rest for name, rest in so_far.items() if name not in turned}
    return (packet, moved), kept
