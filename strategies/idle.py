"""Arguments of `DarexStrategy` that do nothing beside the others: a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fl_darex.compression.downlink import DownlinkPolicy
from fl_darex.compression.downlink.largest import LargestOfStep
from fl_darex.compression.downlink.update import WholeStep
from fl_darex.compression.methods import METHODS
from fl_darex.compression.uplink import Uplink


def idle_arguments(
    given: Mapping[str, Any], uplink: Uplink, policy: DownlinkPolicy
) -> Iterator[str]:
    """Yield a line for each argument that does nothing, and what it is for.

    Args:
        given: Those that differ from their default, options of methods among them.
        uplink: What became of them.
        policy: How the model goes to the clients; one of somebody's own may use anything.
    """
    usual = type(policy) in (DownlinkPolicy, WholeStep, LargestOfStep)
    for name, value in given.items():
        words = ""
        if name in ("q", "scale", "count", "rotate", "mask_first") and not uplink.how.packs:
            words = f"methods that send packets, not {uplink.method!r}"
        elif name == "count" and uplink.mask == "disjoint":
            words = "other masks than 'disjoint', whose count is always exact"
        elif name == "downlink_p" and usual and not isinstance(policy, LargestOfStep):
            words = "downlink = 'server'"
        elif name == "downlink_values" and usual and not policy.versions:
            words = "downlink = 'update' or 'server'"
        elif owners := [key for key, row in METHODS.items() if name in row.options]:
            if uplink.method not in owners:
                words = f"method = {' or '.join(map(repr, owners))}, not {uplink.method!r}"
        if words:
            yield f"{name} = {value!r} does nothing: it is for {words}"
