"""Clients that remember, for workers, which load their app by name."""

from __future__ import annotations

from apps import numpy_app
from test_saveable import Residual

from fl_darex.clients import DarexMod

app = numpy_app([DarexMod(methods=[Residual()])])
