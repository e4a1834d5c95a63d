"""Kinds of workers: one for each class of clients, and one for clients that need to be alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from fl_darex.simulation.memory import DEVICE, MACHINE, Meter, share_of
from fl_darex.simulation.resources import CPU, GPU, Group, Resources
from fl_darex.simulation.room import Machines, Need, Seat, capacity
from fl_darex.simulation.waiting import Times, Waiting


@dataclass(eq=False)
class Hand:
    """A worker.

    Attributes:
        actor: Its process.
        kind: Whom it works for.
        seat: What it takes.
        leaving: Whether it stops as soon as it has nothing to do.
    """

    actor: ActorHandle[Any]
    kind: Kind
    seat: Seat
    leaving: bool = False


@dataclass(eq=False)
class Kind:
    """Clients that need the same, and the workers that run them.

    Attributes:
        whose: Words for them in errors; empty: all that are in no class.
        resources: What each of them may use.
        clients: How many there are, for whom workers are kept ready.
        most: Workers that fit into the cluster, clients can use, and are allowed.
        need: What a worker takes, by Ray's names; None: it has to be measured yet.
        apart: Whether a worker has its machine to itself.
        once: Whether a worker runs one client and is then replaced by a fresh one.
        meters: What is measured after a client.
        times: How long clients took.
        waiting: Those that no worker has yet.
        hands: The workers.
        idle: Those of them that wait for clients.
        hungry: Since when clients wait and there is no worker.
    """

    whose: str
    resources: Resources
    clients: int
    most: int
    need: Need | None
    apart: bool = False
    once: bool = False
    meters: Mapping[str, Meter] = field(default_factory=dict)
    times: Times = field(default_factory=Times)
    waiting: Waiting = field(init=False)
    hands: list[Hand] = field(default_factory=list)
    idle: list[Hand] = field(default_factory=list)
    hungry: float | None = None

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.times)

    @property
    def rare(self) -> bool:
        """Whether a worker takes something else than cores."""
        return any(name != CPU for name in self.need or ())


class Kinds:
    """All kinds of workers of a grid.

    Args:
        groups: The classes of clients.
        among: The machines of the cluster.
        actors: Workers at most, whatever their kind; 0: as many as fit.

    Attributes:
        of: The kind of each partition.
        limit: Workers at most.
        among: The machines; set anew when one is lost or comes back.

    Raises:
        ConfigError: If not even one client of a class fits into the cluster.
    """

    def __init__(self, groups: Sequence[Group], among: Machines, actors: int) -> None:
        self.among, self.limit = among, actors or math.inf
        self._one_class = len(groups) == 1
        self._alone: dict[tuple[Kind, bool], Kind] = {}
        self._classes: list[Kind] = []
        self.of: dict[int, Kind] = {}
        for group in groups:
            kind = self._class(group)
            self._classes.append(kind)
            self.of |= dict.fromkeys(group.partitions, kind)

    def __iter__(self) -> Iterator[Kind]:
        """Return all kinds that there are so far."""
        return iter([*self._classes, *self._alone.values()])

    def hands(self) -> list[Hand]:
        """Return all workers."""
        return [hand for kind in self for hand in kind.hands]

    @property
    def mixed(self) -> bool:
        """Whether workers of several sizes share the machines."""
        return len(self._classes) + len(self._alone) > 1

    def alone(self, kind: Kind, where: str) -> Kind:
        """Return the kind of worker in which a client has a memory to itself.

        That is a fresh one with whole GPUs where clients share them by fractions, and a fresh one
        that nothing shares the machine with where its memory ran out.

        Args:
            kind: The client's own.
            where: `DEVICE` or `MACHINE`.
        """
        whole = self._whole(kind.resources)
        apart = where == MACHINE or all(name == CPU for name in whole)
        key = kind, apart
        if key not in self._alone:
            fits = capacity(self.among, whole, kind.whose)
            meters = kind.resources.meters
            self._alone[key] = Kind(
                kind.whose, kind.resources, 0, fits, whole, apart, True, meters, kind.times
            )
        return self._alone[key]

    def share(self, kind: Kind, slots: Mapping[str, int]) -> bool:
        """Set how many clients of a kind share what is measured; return whether that is news.

        Args:
            kind: Of clients, none that are alone.
            slots: By the resource's name.
        """
        need = {**kind.resources.fixed, **{name: share_of(n) for name, n in slots.items()}}
        before, kind.need = kind.need, self._spread(kind.resources, kind.clients, need)
        kind.most = self._most(kind.need, kind.resources, kind.clients, kind.whose)
        return before != kind.need

    def _class(self, group: Group) -> Kind:
        own, clients = group.resources, len(group.partitions)
        # Also where a part is measured first, one client has to fit.
        if own.meters:
            why = f"{group.label} ('auto': the first client has a whole one)"
            capacity(self.among, self._whole(own), why)
        kind = Kind(group.label, own, clients, 0, None)
        if own.meters:
            self.alone(kind, DEVICE).clients = 1  # to be there when the first client comes
        else:
            self.share(kind, {})
        return kind

    def _most(self, need: Need, own: Resources, clients: int, whose: str) -> int:
        return min(capacity(self.among, need, whose), clients, own.actors or clients)

    def _spread(self, own: Resources, clients: int, need: dict[str, float]) -> Need:
        """Return larger fractions of a GPU where there are more GPUs than clients would fill.

        Ray fills one after the other, so that some would have nothing to do.
        """
        gpus = sum(int(has.get(GPU, 0)) for has in self.among.values())
        if not self._one_class or not 0 < need.get(GPU, 0) < 1:
            return need
        workers = min(clients, own.actors or clients, self.limit)
        slots = min(int(1 / need[GPU] + 1e-6), math.ceil(workers / gpus))
        return {**need, GPU: max(need[GPU], share_of(slots))}

    def _whole(self, own: Resources) -> dict[str, float]:
        need = {**own.fixed, **dict.fromkeys(own.meters, 1.0)}
        for name, amount in need.items():
            if name != CPU and amount < 1:
                most = max((has.get(name, 0.0) for has in self.among.values()), default=1.0)
                need[name] = min(1.0, most or 1.0)
        return need
