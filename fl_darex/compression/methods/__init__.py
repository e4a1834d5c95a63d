"""The compression methods: one file each, one row each."""

from __future__ import annotations

from fl_darex.compression.method import Method
from fl_darex.compression.methods.dare import Dare
from fl_darex.compression.methods.dense import Dense
from fl_darex.compression.methods.magnitude import Magnitude
from fl_darex.compression.methods.structured import Structured
from fl_darex.compression.methods.wanda import Wanda
from fl_darex.registry import Registry

METHODS: Registry[Method] = Registry(
    "method", Method, (Dare(), Magnitude(), Wanda(), Structured(), Dense())
)

__all__ = ["METHODS"]
