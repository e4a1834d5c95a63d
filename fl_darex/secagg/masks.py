"""Masks: who shares one with whom, what they are, and how a sum is rid of them.

All share with all, or each with a few at random as in SecAgg+ (Bell et al., CCS 2020): put the
clients around a table in random order; neighbours are those who sit near. So few drop-outs hardly
ever cut the table in two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from random import Random

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg import keys
from fl_darex.secagg.ring import Shape, Vector

Graph = Mapping[int, tuple[int, ...]]
"""For each client its neighbours, rising; if a is b's, b is a's."""


def seat(clients: Sequence[int], degree: int, chance: Random) -> Graph:
    """Return each client's neighbours.

    Args:
        clients: Their slots, all different.
        degree: How many neighbours; an even number, or all others.
        chance: Where the order around the table comes from.
    """
    order = list(clients)
    chance.shuffle(order)
    if degree >= len(order) - 1:
        return {one: tuple(sorted(set(order) - {one})) for one in order}
    steps = range(1, degree // 2 + 1)
    around = [step for near in steps for step in (near, -near)]
    return {
        one: tuple(sorted({order[(at + step) % len(order)] for step in around}))
        for at, one in enumerate(order)
    }


def staying(graph: Graph, clients: Iterable[int], needed: int) -> set[int]:
    """Return the clients of whom enough neighbours are left, they themselves counted.

    A client that goes is missing to its neighbours, so this is repeated until nobody goes.
    """
    left = set(clients)
    while gone := {one for one in left if len(left.intersection(graph[one])) + 1 < needed}:
        left -= gone
    return left


def is_connected(graph: Graph, clients: Iterable[int]) -> bool:
    """Return whether masks tie all clients together; if not, the sum of each part could be had."""
    left = set(clients)
    edge = {left.pop()} if left else set()
    while edge:
        edge = {near for one in edge for near in graph[one]} & left
        left -= edge
    return not left


def own_mask(shape: Shape, seed: bytes, session: bytes, slot: int) -> Vector:
    """Return a client's own mask, which only its seed gives."""
    return shape.read(keys.keystream(keys.derived(seed, session, f"self|{slot}"), shape.size))


def add_shared(
    vector: Vector, secret: bytes, public: bytes, session: bytes, slot: int, peer: int
) -> None:
    """Add in place what a client adds for a neighbour: the two cancel in a sum.

    Args:
        vector: The client's own, or the sum in which its part is missing.
        secret: The client's.
        public: The neighbour's public key.
        session: Of this round.
        slot: Of the client. The one with the lower slot adds the mask, the other takes it away.
        peer: Of the neighbour.
    """
    low, high = sorted((slot, peer))
    key = keys.agree(secret, public, session, f"pair|{low}|{high}")
    mask = vector.shape.read(keys.keystream(key, vector.shape.size))
    if slot == low:
        vector.add(mask)
    else:
        vector.subtract(mask)


@dataclass
class Members:
    """What a server knows of the clients of a round, by slot; none of it is secret.

    Attributes:
        session: The round's 16 bytes.
        public: The two public keys of each: for letters, then for masks.
        graph: Who shares masks and secrets with whom.
        threshold: Shares that give a secret.
        commitments: What fixes the seed of each one's own mask.
        masked: Who may have masked with whom: the clients whose shares went around.
    """

    session: bytes
    public: dict[int, bytes] = field(default_factory=dict)
    graph: Graph = field(default_factory=dict)
    threshold: int = 2
    commitments: dict[int, bytes] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)

    def near(self, slot: int) -> list[int]:
        """Return whose shares a client holds, its own among them, rising."""
        return sorted([slot, *self.masked.intersection(self.graph[slot])])

    def mask_key(self, slot: int) -> bytes:
        """Return the public key with which a client makes masks."""
        return keys.halves(self.public[slot])[1]

    def unmask(
        self, total: Vector, alive: Set[int], given: Mapping[int, Mapping[int, bytes]]
    ) -> None:
        """Take all masks out of the sum of the vectors of ``alive``, in place.

        Args:
            total: The sum of their masked vectors.
            alive: Those whose vectors are in the sum.
            given: For each client that answered, its share of each of `near`: of the seed of the
                own mask if that one is alive, else of the key of its masks.

        Raises:
            PacketError: If too few right shares of a secret came.
        """
        commit = partial(keys.commitment, session=self.session)
        for slot in sorted(self.masked):
            peers = sorted(alive & set(self.graph[slot]))
            if slot in alive:
                seed = self._rebuilt(slot, given, commit, self.commitments[slot])
                total.subtract(own_mask(total.shape, seed, self.session, slot))
            elif peers:
                secret = self._rebuilt(slot, given, keys.public_key, self.mask_key(slot))
                for peer in peers:
                    add_shared(total, secret, self.mask_key(peer), self.session, slot, peer)

    def _rebuilt(
        self,
        slot: int,
        given: Mapping[int, Mapping[int, bytes]],
        shown: Callable[[bytes], bytes],
        known: bytes,
    ) -> bytes:
        """Return a client's secret, which shows itself as what is known of it."""
        holders = sorted([slot, *self.graph[slot]])  # in the order of share numbers
        held = {
            at: given[one][slot] for at, one in enumerate(holders) if slot in given.get(one, {})
        }
        found = keys.combine(held, self.threshold, lambda secret: shown(secret) == known)
        if found is None:
            raise PacketError(
                f"the masks of client {slot} cannot be removed: {len(held)} shares came, "
                f"{self.threshold} right ones are needed",
                Reason.REPLY,
            )
        return found
