"""The compression methods: one file each, one row each."""

from __future__ import annotations

from fl_darex.compression.method import Method
from fl_darex.compression.methods.dare import Dare
from fl_darex.compression.methods.dense import Dense
from fl_darex.compression.methods.dgc import Dgc
from fl_darex.compression.methods.magnitude import Magnitude
from fl_darex.compression.methods.powersgd import PowerSgd
from fl_darex.compression.methods.randk import RandK
from fl_darex.compression.methods.signsgd import SignSgd
from fl_darex.compression.methods.sparseloco import SparseLoco
from fl_darex.compression.methods.stc import Stc
from fl_darex.compression.methods.structured import Structured
from fl_darex.compression.methods.topk import TopK
from fl_darex.compression.methods.wanda import Wanda
from fl_darex.registry import Registry

_OWN = (Dare(), Magnitude(), Wanda(), Structured(), Dense())
RIVALS: tuple[Method, ...] = (TopK(), RandK(), Stc(), SignSgd(), SparseLoco(), Dgc(), PowerSgd())
"""What others have published, to compare with."""

METHODS: Registry[Method] = Registry("method", Method, (*_OWN, *RIVALS))

__all__ = ["METHODS", "RIVALS"]
