"""The closed set of errors that fl-darex raises on purpose.

Every message is for a person: it names the key or the object, the value found, the values
allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DarexError(Exception):
    """Root of all errors of fl-darex; catch this one to catch them all."""


class ConfigError(DarexError, ValueError):
    """A setting, or a file or resource that a setting points to, cannot be used."""


class PacketError(DarexError, ValueError):
    """Bytes from outside are not a packet that this receiver can accept."""


class DeltaError(DarexError, ValueError):
    """Two sets of tensors do not fit each other, or hold values that cannot be sent."""


class AnchorError(DarexError, ValueError):
    """An AdamR anchor does not fit the parameters or the saved optimizer state."""


class EngineError(DarexError, RuntimeError):
    """A simulation or deployment engine could not be started or stopped working."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
