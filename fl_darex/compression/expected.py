"""What a message is expected to take in bytes, and a round's step in noise, before there is one."""

from __future__ import annotations

import math

import numpy as np

from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.masks import ONE
from fl_darex.rescaling.rules import PER_TENSOR
from fl_darex.wire.codings import CODINGS, dense_size, nature_of
from fl_darex.wire.header import HEADER_BYTES

ENVELOPE_BYTES = 1400
"""Of a message beside its arrays: metrics, settings and ids; some 1.2 to 1.6 kB."""


def packet_bytes(
    layout: Layout, share: float, values: str, listed: float = 0.0, rule: str = ""
) -> int:
    """Return the bytes of a message with a packet.

    Args:
        layout: The model's.
        share: Of the entries of pruned tensors that are in it.
        values: How numbers are written.
        listed: The share by which positions are listed, at the entropy of their gaps; 0: they
            follow from seeds.
        rule: By which a client chooses q, which is one number for each tensor by some; empty: it
            does not.
    """
    entries = sum(spec.numel for spec in layout.pruned)
    bits = 0.0
    if 0 < listed < 1:
        bits = -listed * math.log2(listed) - (1 - listed) * math.log2(1 - listed)
    raw = sum(spec.numel * np.dtype(spec.dtype).itemsize for spec in layout.raw)
    numbers = CODINGS[values].size(round(entries * share))
    whole = dense_size(values, layout.dense)
    positions = math.ceil(entries * bits / 8)
    # One q has its place in the header.
    qs = 4 * len(layout.pruned) if rule in PER_TENSOR and len(layout.pruned) > 1 else 0
    return ENVELOPE_BYTES + HEADER_BYTES + qs + positions + numbers + whole + raw


def expected_noise(uplink: Uplink, clients: int) -> float | None:
    """Return how long what a round's step has in noise is, in changes of a client.

    With k = 1-p, n clients of which m have masks of their own, and a coding whose squared error
    is ``nmse`` times the squared length of what it writes (`fl_darex.wire.codings.Nature`), it is
    ``sqrt(k (p / m + nmse / n)) / q``: each entry that survives stands for ``1/q``. So for q = k
    and independent masks ``sqrt(((1 + nmse) / k - 1) / n)``; a shared mask has m = 1. Disjoint
    masks are no noisier than independent ones, and less so where clients agree.

    Args:
        uplink: What is asked of clients.
        clients: How many take part in a round, with changes of about the same length.

    Returns:
        The ratio; where clients train only what their mask keeps, of the coding alone; None where
        nothing is dropped at random or rounded coarsely, what is dropped is fed back, or clients
        choose q.
    """
    how, keep = uplink.how, uplink.keep / ONE
    rounding = nature_of(uplink.values).nmse
    at_random = how.packs and how.seeded and not how.feeds_back
    if not at_random or uplink.rule or (keep == 1.0 and not rounding):
        return None
    together = 1 if uplink.mask == "round" else clients
    dropped = 0.0 if uplink.mask_first else (1.0 - keep) / together
    share = 1.0 if uplink.mask_first else keep  # of the change that there is
    shorter = 1.0 if uplink.scale == "unbiased" else 1.0 / (1.0 + rounding)
    return shorter * math.sqrt(share * (dropped + rounding / clients)) / uplink.divisor
