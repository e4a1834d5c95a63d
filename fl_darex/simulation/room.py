"""Where a worker fits: machines, their cores, single GPUs and custom resources, and who leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from fl_darex.errors import ConfigError
from fl_darex.simulation.resources import CPU, GPU

Need = Mapping[str, float]
"""Amounts by Ray's names."""

Machines = Mapping[str, Need]
"""What each node has, by its id."""

_EXACT = 1e-6  # far below Ray's ten-thousandths


@dataclass(eq=False)
class Seat:
    """What one worker takes, and where.

    Attributes:
        need: Amounts by Ray's names.
        apart: Whether it shares its machine with no other worker.
        node: The id of the machine.
        gpus: Which of its GPUs; until the worker says it, names that only tell them apart.
    """

    need: Need
    apart: bool = False
    node: str = ""
    gpus: tuple[str, ...] = ()


def machines() -> dict[str, Need]:
    """Return what the nodes of the cluster have that are alive."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def fitting(has: Need, need: Need) -> int:
    """Return how many workers fit on an empty machine; a fraction of a GPU lies on one of them."""
    fits = []
    for name, amount in need.items():
        if name == GPU and amount < 1:
            fits.append(int(has.get(GPU, 0)) * int(1 / amount + _EXACT))
        else:
            fits.append(int(has.get(name, 0) / amount + _EXACT))
    return min(fits)


def capacity(among: Machines, need: Need, whose: str = "") -> int:
    """Return how many workers of this size the cluster can hold at once, machine by machine.

    Args:
        among: The machines.
        need: Of each worker.
        whose: Words for them in errors.

    Raises:
        ConfigError: If not even one fits.
    """
    total = sum(fitting(has, need) for has in among.values())
    if total:
        return total
    for name in sorted(need, key=lambda name: name == CPU):  # GPUs are the usual cause
        most = max((has.get(name, 0.0) for has in among.values()), default=0.0)
        if need[name] > most + _EXACT:
            key, things = _NAMES.get(name, (f"custom.{name}", f"of {name!r}"))
            asked, least = f"{key} = {need[name]:g}{whose}", "up" if name == CPU else "0"
            raise ConfigError(
                f"resources.{asked}, but the largest node has {most:g} {things}; "
                f"allowed here: {least} to {most:g}"
            )
    asked = ", ".join(f"{_NAMES.get(n, (f'custom.{n}',))[0]} = {x:g}" for n, x in need.items())
    have = "; ".join(", ".join(f"{n} {has.get(n, 0):g}" for n in need) for has in among.values())
    raise ConfigError(
        f"resources.{asked}{whose}: no node has all of that together; the nodes have: {have}"
    )


_NAMES = {CPU: ("num-cpus", "cores"), GPU: ("num-gpus", "GPUs")}


def place(
    among: Machines, taken: Iterable[Seat], wanted: Seat, movable: Collection[Seat]
) -> tuple[Seat, list[Seat]] | None:
    """Return a seat for one more worker, and whose seats it takes; None: there is no room.

    As few as possible have to leave. Of machines that are equal in this it is one that has nothing
    else to offer, such as GPUs for a worker that needs none, and then the emptiest.

    Args:
        among: The machines.
        taken: All seats on them.
        wanted: What the worker needs.
        movable: Those of the taken seats that may be taken.
    """
    best: tuple[tuple[int, int, float], Seat, list[Seat]] | None = None
    everyone = list(taken)
    for node, has in among.items():
        here = [seat for seat in everyone if seat.node == node]
        found = _on(has, here, wanted, [seat for seat in here if seat in movable])
        if found is None:
            continue
        gpus, leaving = found
        idle = sum(_is_a_thing(name) and name not in wanted.need for name in has)
        full = max(sum(s.need.get(n, 0) for s in here) / has[n] for n in wanted.need)
        rank = (len(leaving), idle, full)
        if best is None or rank < best[0]:
            best = rank, Seat(wanted.need, wanted.apart, node, tuple(gpus)), leaving
    return best and best[1:]


def _on(
    has: Need, here: list[Seat], wanted: Seat, movable: list[Seat]
) -> tuple[Sequence[str], list[Seat]] | None:
    """Return GPUs and who leaves on one machine, or None."""
    stay = [seat for seat in here if seat not in movable]
    gpus = _gpus(has, stay, wanted)
    if gpus is None:
        return None
    # Who shares a GPU with somebody that stays, or with many, is in nobody's way there.
    tied = {name for seat in stay for name in seat.gpus}
    crowd = Counter(name for seat in movable for name in seat.gpus)
    leaving = []
    for seat in sorted(movable, key=lambda s: _crowded(s, tied, crowd), reverse=True):
        if (kept := _gpus(has, [*stay, seat], wanted)) is None:
            leaving.append(seat)
        else:
            stay, gpus = [*stay, seat], kept
    return gpus, leaving


def _gpus(has: Need, here: Sequence[Seat], wanted: Seat) -> Sequence[str] | None:
    """Return the GPUs that a worker gets beside others, none if it needs none; None: no room."""
    if here and (wanted.apart or any(seat.apart for seat in here)):
        return None
    for name, amount in wanted.need.items():
        used = sum(seat.need.get(name, 0.0) for seat in here)
        if used + amount > has.get(name, 0.0) + _EXACT:
            return None
    amount, count = wanted.need.get(GPU, 0.0), int(has.get(GPU, 0.0))
    used_of: dict[str, float] = {}
    for seat in here:
        for name in seat.gpus:
            used_of[name] = used_of.get(name, 0.0) + min(seat.need[GPU], 1.0)
    unseen = (f"new {number}" for number in range(count + len(used_of)))
    names = [*used_of, *(name for name in unseen if name not in used_of)][:count]
    if amount >= 1:
        free = [name for name in names if not used_of.get(name)][: int(amount)]
        return free if len(free) == int(amount) else None
    # As Ray does: the fullest one that has room.
    fitting = [name for name in names if used_of.get(name, 0.0) + amount <= 1 + _EXACT]
    if amount and not fitting:
        return None
    return [max(fitting, key=lambda name: used_of.get(name, 0.0))] if amount else []


def _crowded(seat: Seat, tied: Collection[str], crowd: Mapping[str, int]) -> tuple[bool, int]:
    return any(gpu in tied for gpu in seat.gpus), max((crowd[gpu] for gpu in seat.gpus), default=0)


def _is_a_thing(name: str) -> bool:
    """Return whether a resource is one that somebody may need: not memory, nor a node's name."""
    return name not in (CPU, "memory", "object_store_memory") and ":" not in name
