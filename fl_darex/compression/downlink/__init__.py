"""What the server sends down: one policy a file, one row each."""

from __future__ import annotations

from fl_darex.compression.downlink.largest import LargestOfStep
from fl_darex.compression.downlink.policy import DownlinkPolicy, StepTerms
from fl_darex.compression.downlink.update import WholeStep
from fl_darex.registry import Registry

POLICIES: Registry[DownlinkPolicy] = Registry(
    "downlink", DownlinkPolicy, (DownlinkPolicy(), WholeStep(), LargestOfStep())
)

__all__ = ["POLICIES", "DownlinkPolicy", "StepTerms"]
