"""The closed set of errors that fl-darex raises on purpose.

Every message is for a person: it names the key or the object, the value found, the values
allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class DarexError(Exception):
    """Root of all errors of fl-darex; catch this one to catch them all."""


class ConfigError(DarexError, ValueError):
    """A setting, or a file or resource that a setting points to, cannot be used."""


class Reason(StrEnum):
    """Why bytes from outside were refused; the closed set that programs may rely on."""

    SIZE = "size"  # truncated, padded, or larger than the layout allows
    FORMAT = "format"  # not a packet, or of an unknown version, method, generator or coding
    CHECKSUM = "checksum"  # damaged on the way
    UNEXPECTED = "unexpected"  # sound, but not what was asked for: another round, client, q, ...
    LAYOUT = "layout"  # other tensors than the receiver's
    POSITIONS = "positions"  # out of range, repeated, or not as many as announced
    VALUES = "values"  # NaN, infinite, or codes that no encoder writes
    TERMS = "terms"  # the server's instructions are not understood
    REPLY = "reply"  # an error, no usable weight, or nobody asked
    RECORDS = "records"  # not one model, or not one weight, among the records of a reply
    VERSION = "version"  # changes to a model that the receiver does not hold


class PacketError(DarexError, ValueError):
    """Bytes from outside are not something that this receiver can accept.

    Attributes:
        reason: Which kind of refusal, for programs; the message is for people.
    """

    def __init__(self, message: str, reason: Reason = Reason.FORMAT) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[PacketError], tuple[str, Reason]]:
        """Survive the way between processes with the reason."""
        return type(self), (str(self), self.reason)


DIVERGED = "training has diverged"
"""Part of the error of a client whose update is not finite, which later rounds may mend."""


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
