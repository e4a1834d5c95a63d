"""Masks: who shares one with whom, and what they are.

All share with all, or each with a few at random as in SecAgg+ (Bell et al., CCS 2020): put the
clients around a table in random order; neighbours are those who sit near. So few drop-outs hardly
ever cut the table in two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

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
