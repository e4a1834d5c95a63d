"""What a server asks for when it asks for secure aggregation, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_darex import checks
from fl_darex.errors import PacketError, Reason
from fl_darex.secagg.ring import WIDEST, Ring, bits_needed, ring_for

MOST_CLIENTS = 2**15 - 1
"""Clients of a round: so many weights times counters fit into 64 bits."""

LEAST_CLIENTS = 3
"""With two, each knows the other's update from the sum."""


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """Settings of secure aggregation.

    A client scales each number v (a survivor of the delta, not yet divided by q) to
    ``v / range * weight / max_weight * (2**(bits-1) - 1)``, rounds it at random to one of its two
    neighbouring integers, so that its mean is kept, and adds masks. The server learns the sum of
    these integers and the sum of the weights.

    Attributes:
        range: Largest magnitude of a survivor; what lies outside is clipped, and the server learns
            how many numbers of all clients were. With AdamW or AdamR, learning rate times local
            steps bounds the change of a weight.
        max_weight: Largest weight of a client, usually its number of examples; a larger one is
            lowered to it. Weights are rounded to multiples of ``max_weight / 2**24``.
        dense_range: Largest magnitude in tensors that are sent whole; None: ``range``.
        bits: Bits of one client's integers, 2 to 32, the sign among them.
        ring: Bits of the numbers that travel, 8, 16, ... or 64; None: the fewest that hold the sum
            of all clients asked, ``bits + log2(clients)`` rounded up to whole bytes.
        threshold: How many of the clients that hold shares of a secret must stay until the end: a
            number of clients (an int), or more than this part of them (a float). More than half,
            or a server that tells two stories could unmask.
        neighbours: With how many others a client shares masks and secrets, an even number; None:
            with all.
        timeout: Seconds that clients have to answer the short messages; None: as for training.
        metrics: Names of metrics that clients send in the clear, averaged without weights. All
            others, and the weight, are left out of replies.

    Raises:
        TypeError: If one is of another kind, such as a text in a number's place.
        ValueError: If one is outside its range.
    """

    range: float
    max_weight: float
    dense_range: float | None = None
    bits: int = 16
    ring: int | None = None
    threshold: int | float = 2 / 3
    neighbours: int | None = None
    timeout: float | None = None
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.metrics
        if isinstance(names, str) or not all(isinstance(name, str) for name in names or ()):
            raise TypeError(f"metrics must be a list of names, got {names!r}")
        object.__setattr__(self, "metrics", tuple(names or ()))
        for name in ("range", "max_weight"):
            checks.positive(name, getattr(self, name))
        for name in ("dense_range", "timeout"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name), "a finite number above 0, or None")
        checks.whole("bits", self.bits, "an integer from 2 to 32", lambda n: 2 <= n <= 32)
        if self.ring is not None:
            widths = list(range(8, 8 * WIDEST + 1, 8))
            checks.whole("ring", self.ring, f"one of {widths} or None", widths.__contains__)
        if self.neighbours is not None:
            wanted = "an even number from 2 on, or None"
            checks.whole("neighbours", self.neighbours, wanted, lambda n: n >= 2 and n % 2 == 0)
        if isinstance(self.threshold, float):
            wanted = "a part in [0.5, 1) or a number of clients"
            checks.real("threshold", self.threshold, wanted, lambda part: 0.5 <= part < 1.0)
        else:
            checks.whole("threshold", self.threshold, "2 clients or more", lambda n: n >= 2)

    @property
    def levels(self) -> int:
        """Integers on each side of 0 that a client's numbers are rounded to."""
        return int(2 ** (self.bits - 1) - 1)

    def degree(self, clients: int) -> int:
        """Return with how many others each of ``clients`` shares secrets."""
        wanted = clients - 1 if self.neighbours is None else self.neighbours
        return min(wanted, clients - 1)

    def needed(self, clients: int) -> int:
        """Return how many holders of a secret's shares must stay, of `degree` + 1.

        Raises:
            PacketError: If the threshold is not more than half of them, or more than there are:
                that round cannot be.
        """
        holders = self.degree(clients) + 1
        if isinstance(self.threshold, float):
            return min(holders, math.floor(self.threshold * holders + 1e-9) + 1)
        if not holders / 2 < self.threshold <= holders:
            raise PacketError(
                f"threshold must be more than half of the {holders} clients that hold shares of a "
                f"secret, and at most all of them, got {self.threshold}",
                Reason.REPLY,
            )
        return self.threshold

    def suits(self, clients: int) -> bool:
        """Return whether a round of so many clients can be."""
        try:
            return LEAST_CLIENTS <= clients and bool(self.needed(clients))
        except PacketError:
            return False

    def least(self, clients: int) -> int:
        """Return how many of ``clients`` must stay for their sum to be opened."""
        holders = self.degree(clients) + 1
        return max(2, -(-clients * self.needed(clients) // holders))

    def ring_for(self, clients: int) -> Ring:
        """Return the ring in which the numbers of ``clients`` are added.

        Raises:
            ValueError: If there are too few or too many clients, or their sum does not fit.
        """
        if not LEAST_CLIENTS <= clients <= MOST_CLIENTS:
            raise ValueError(
                f"secure aggregation needs {LEAST_CLIENTS} to {MOST_CLIENTS} clients in a round, "
                f"got {clients}"
            )
        if self.ring is None:
            return ring_for(clients, self.levels)
        if (needed := bits_needed(clients, self.levels)) > self.ring:
            raise ValueError(
                f"the sum of {clients} clients with {self.bits} bits each needs a ring of {needed} "
                f"bits, got ring = {self.ring}; use a wider one, or fewer bits"
            )
        return Ring(self.ring // 8)
