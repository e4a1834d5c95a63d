"""How the model goes to the clients: whole, or as what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord

from fl_darex.compression.uplink import check_choice
from fl_darex.flower.model_note import Delivery
from fl_darex.masks import keep_threshold
from fl_darex.positions import Mask
from fl_darex.wire.header import NO_VERSION
from fl_darex.wire.values import CODINGS

from .broadcast import Broadcast
from .policies import LargestOfStep, WholeStep

DOWNLINKS = ("dense", "update", "server")


class Downlink(Protocol):
    """What the strategy asks of the way down."""

    @property
    def version(self) -> bytes:
        """The present model's version; zeros where nobody keeps versions."""

    def present(self, record: ArrayRecord) -> None:
        """Say which model the next messages carry."""

    def greet(self, config: ConfigRecord) -> None:
        """Ask, in a message's configuration, what the client holds."""

    def heard(self, node: int, answer: ConfigRecord) -> None:
        """Take note of a client's answer."""

    def content(self, node: int) -> tuple[ArrayRecord, Delivery | None]:
        """Return the arrays for one client, and what they are; None: just the model."""

    def whole(self) -> tuple[ArrayRecord, Delivery | None]:
        """Return the whole model."""

    def spoke(self, node: int) -> None:
        """A client's packet came from the present model."""

    def holds(self, node: int) -> None:
        """A client was sent the present model and has answered."""

    def lacks(self, node: int) -> None:
        """A client does not hold what it should."""

    def advance(self, record: ArrayRecord, sent: Sequence[Mask] | None, round_: int) -> ArrayRecord:
        """Return the model that everybody will hold after a step of the server's."""

    def end(self) -> None:
        """Take away what clients on this machine kept of the run."""


class DenseDownlink:
    """The null downlink: everybody is sent the model, and nobody is asked anything."""

    version = NO_VERSION

    def __init__(self) -> None:
        self._record = ArrayRecord()

    def present(self, record: ArrayRecord) -> None:
        """Say which model the next messages carry."""
        self._record = record

    def greet(self, config: ConfigRecord) -> None:
        """Ask nothing."""

    def heard(self, node: int, answer: ConfigRecord) -> None:
        """Hear nothing."""

    def content(self, node: int) -> tuple[ArrayRecord, None]:
        """Return the model."""
        return self._record, None

    def whole(self) -> tuple[ArrayRecord, None]:
        """Return the model."""
        return self._record, None

    def spoke(self, node: int) -> None:
        """Nobody needs to know."""

    def holds(self, node: int) -> None:
        """Nobody needs to know."""

    def lacks(self, node: int) -> None:
        """Nobody needs to know."""

    def advance(self, record: ArrayRecord, sent: Sequence[Mask] | None, round_: int) -> ArrayRecord:
        """Return the model as it is."""
        return record

    def end(self) -> None:
        """Nobody kept anything."""


def make_downlink(
    kind: str,
    *,
    p: float,
    values: str,
    seed: int,
    dense: Sequence[str],
    held: bool = False,
) -> Downlink:
    """Return a downlink by name.

    Args:
        kind: A row of `DOWNLINKS`.
        p: Fraction of the server's step that is kept back (``server``), in [0, 1).
        values: How the step's numbers are written.
        seed: The run's seed.
        dense: Names of tensors whose whole change is sent.
        held: Whether clients are taken to hold the first model, unless they say otherwise.

    Raises:
        ValueError: If there is no such downlink or coding, or clients hold a model that would be
            sent whole all the same.
    """
    check_choice("downlink", kind, DOWNLINKS)
    check_choice("downlink_values", values, CODINGS)
    if held and kind == "dense":
        raise ValueError(
            "base_held needs a downlink that builds on what clients hold: 'update' or 'server'"
        )
    if kind == "update":
        return Broadcast(WholeStep(seed, CODINGS[values]), values, dense, held)
    if kind == "server":
        return Broadcast(LargestOfStep(seed, keep_threshold(p)), values, dense, held)
    return DenseDownlink()
