"""How the model goes to the clients."""

from __future__ import annotations

from fl_darex.compression.downlink import POLICIES, DownlinkPolicy
from fl_darex.compression.uplink import Uplink, check_choice
from fl_darex.masks import keep_threshold
from fl_darex.wire.codings import CODINGS, Coding

from .broadcast import Broadcast


def broadcast_for(
    policy: str | DownlinkPolicy,
    uplink: Uplink,
    p: float | None,
    values: str | Coding | None,
    held: bool,
) -> Broadcast:
    """Return the downlink of a run.

    Args:
        policy: Name of a row of `fl_darex.compression.downlink.POLICIES`, or a policy of one's own.
        uplink: The way up; its p and values count where those of the way down are None.
        p: Fraction of the server's step that is kept back, in [0, 1).
        values: How the step's numbers are written.
        held: Whether clients are taken to hold the first model, unless they say otherwise.

    Raises:
        ValueError: If there is no such policy or coding, or clients hold a model that would be
            sent whole all the same.
    """
    if isinstance(policy, DownlinkPolicy):
        policy = POLICIES.add(policy).name
    check_choice("downlink", policy, POLICIES)
    if not isinstance(values, str | None):
        values = CODINGS.add(values).name
    check_choice("downlink_values", values or uplink.values, CODINGS)
    return Broadcast(
        POLICIES[policy],
        keep=uplink.keep if p is None else keep_threshold(p),
        values=values or uplink.values,
        uplink=uplink,
        held=held,
    )
