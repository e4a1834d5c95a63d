"""The norm of a client's update, as the server adds it, and what clips it.

Survivors are divided by q before they are added, so a client that clipped its own change can be
up to ``1/q`` times as long here. What is bounded is therefore what enters the sum: survivors over q
and whole changes of dense tensors, after rounding; tensors that are not floating point do not
count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from logging import INFO
from typing import Any

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.flower.records import to_arrays
from fl_darex.wire.reader import Packet

from .aggregation import Reply

_BLOCK = 1 << 20


def tightest(clip: float | None, noise: float | None) -> float | None:
    """Return the smaller of two bounds on an update's norm; None: any norm.

    Args:
        clip: The one that was asked for.
        noise: The one for which the wrapped strategy adds noise.

    Raises:
        ValueError: If ``clip`` is no norm above 0.
    """
    if clip is not None and not 0.0 < clip < math.inf:
        raise ValueError(f"clip is the largest norm of an update, above 0; got {clip!r}")
    return min((norm for norm in (clip, noise) if norm is not None), default=None)


def clipped(reply: Reply, base: Mapping[str, NDArray[Any]], layout: Layout, norm: float) -> Reply:
    """Return a reply whose update has at most this norm, to float32 round-off.

    Args:
        reply: An opened reply.
        base: The tensors that the clients were sent.
        layout: Their layout.
        norm: The largest L2 norm, over all floating-point tensors together.
    """
    found = update_norm(reply, base, layout)
    if found <= norm:
        return reply
    log(INFO, "client %s: an update of norm %.4g is clipped to %g", reply.terms.slot, found, norm)
    return replace(reply, factor=norm / found)


def update_norm(reply: Reply, base: Mapping[str, NDArray[Any]], layout: Layout) -> float:
    """Return the L2 norm of what a reply adds to the model, with a weight of 1."""
    if reply.packet is not None:
        return _packet_norm(reply.packet)
    arrays, square = to_arrays(reply.record), 0.0
    for spec in (*layout.pruned, *layout.dense):
        change = arrays[spec.name].astype(np.float64) - base[spec.name]
        square += float(np.vdot(change, change))
    return math.sqrt(square)


def _packet_norm(packet: Packet) -> float:
    square = sum(_square(change) for change in packet.dense().values())
    if isinstance(packet.q, float):
        count = packet.header.survivors
        blocks = (packet.numbers(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK))
        return math.sqrt(square + sum(map(_square, blocks)) / packet.q**2)
    survivors = packet.survivors()  # which tensor an entry is in follows from the mask alone
    for index, values in enumerate(survivors.values.values()):
        square += _square(values) / survivors.q_of(index) ** 2
    return math.sqrt(square)


def _square(numbers: NDArray[np.float32]) -> float:
    wide = numbers.astype(np.float64)
    return float(np.vdot(wide, wide))
