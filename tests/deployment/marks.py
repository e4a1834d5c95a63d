"""What all tests of deployments have in common: their mark, and how long anything may take."""

from __future__ import annotations

import pytest

SLOW = 900.0  # seconds that anything may take on a machine with other work


def deployment(seconds: int) -> list[pytest.MarkDecorator]:
    """The marks of a file whose tests may take so long."""
    return [
        pytest.mark.deployment,
        pytest.mark.timeout(seconds),
        # Flower still uses a pattern class that pathspec will drop.
        pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec"),
    ]
