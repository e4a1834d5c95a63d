"""Who shares masks and secrets with whom: all with all, or each with a few at random.

SecAgg+ (Bell et al., CCS 2020): put the clients around a table in random order; neighbours are
those who sit near. So few drop-outs hardly ever cut the table in two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

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
