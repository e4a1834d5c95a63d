"""What a client sends: what is asked, how it is made, and what came.

What an own method, coding or downlink policy needs is named here.
"""

from fl_darex.compression.downlink import POLICIES, DownlinkPolicy, StepTerms
from fl_darex.compression.feedback import Feedback
from fl_darex.compression.method import NOTHING, Local, Method, State, left_over, with_left_over
from fl_darex.compression.methods import METHODS
from fl_darex.compression.terms import Terms
from fl_darex.compression.update import SparseUpdate, Update
from fl_darex.compression.uplink import Uplink
from fl_darex.options import Option

__all__ = [
    "METHODS",
    "NOTHING",
    "POLICIES",
    "DownlinkPolicy",
    "Feedback",
    "Local",
    "Method",
    "Option",
    "SparseUpdate",
    "State",
    "StepTerms",
    "Terms",
    "Update",
    "Uplink",
    "left_over",
    "with_left_over",
]
