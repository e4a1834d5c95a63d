"""What simulated clients need: all of them the same, or each class of them its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from fl_darex import checks
from fl_darex.simulation.memory import Meter, gpu_memory

CPU, GPU = "CPU", "GPU"
"""Ray's names."""

GPUS_WANTED = "from 0 on a fraction below 1 or a whole number"
"""What `can_be_gpus` allows, in words."""

_LEAST = 1e-4  # Ray's own precision
_RAYS_OWN = (CPU, GPU, "memory", "object_store_memory")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one simulated client may use.

    Attributes:
        num_cpus: Cores per client, may be a fraction.
        num_gpus: GPUs per client: a fraction (0.25: four share one; Ray does not cap memory by
            it), a whole number, or ``auto``: the first client has a GPU to itself, and from the
            memory that it takes there follows how many share one after that.
        actors: Worker processes at most; 0 = as many as fit.
        ray_address: An existing Ray cluster, HOST:PORT, or ``auto``: the one that ``RAY_ADDRESS``
            names or that runs here; empty = use the one of this process or start one.
        custom: Ray's custom resources, by name: an amount, or a function that measures, as
            ``num_gpus="auto"`` does; see `fl_darex.simulation.memory`.

    Raises:
        TypeError: If one is of another kind, such as a text in a number's place.
        ValueError: If one is outside its range.
    """

    num_cpus: float = 1.0
    num_gpus: float | Literal["auto"] = 0.0
    actors: int = 0
    ray_address: str = ""
    custom: Mapping[str, float | Meter] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checks.positive("num_cpus", self.num_cpus)
        if self.num_gpus != "auto":
            checks.real("num_gpus", self.num_gpus, f"'auto', or {GPUS_WANTED}", can_be_gpus)
        checks.whole("actors", self.actors, "a whole number from 0 on", lambda n: n >= 0)
        checks.instance("ray_address", self.ray_address, str, "text, HOST:PORT")
        checks.instance("custom", self.custom, Mapping, "a mapping of names to amounts")
        for name, amount in self.custom.items():
            _check_custom(name, amount)

    @property
    def fixed(self) -> dict[str, float]:
        """What one client needs, by Ray's names, without what is measured."""
        given = {CPU: self.num_cpus, GPU: self.num_gpus, **self.custom}
        return {name: float(n) for name, n in given.items() if isinstance(n, int | float) and n}

    @property
    def meters(self) -> dict[str, Meter]:
        """What measures the rest."""
        meters = {name: meter for name, meter in self.custom.items() if callable(meter)}
        return {GPU: gpu_memory, **meters} if self.num_gpus == "auto" else meters


Classes = Mapping[Sequence[int], Resources]
"""What some clients need in place of the others, such as ``{range(10): Resources(num_gpus=1)}``."""


@dataclass(frozen=True)
class Group:
    """Clients that need the same.

    Attributes:
        label: Words for them in errors, such as ``" of the clients 0-9"``; empty: all the others.
        resources: What each of them needs.
        partitions: Theirs.
    """

    label: str
    resources: Resources
    partitions: Sequence[int]


def groups_of(clients: int, resources: Resources, classes: Classes | None) -> list[Group]:
    """Return the classes of clients, those that need the same as one, and who is in none.

    Raises:
        TypeError: If the classes are no mapping of partitions to `Resources`.
        ValueError: If there is no such client, one is in two classes, or a class has a cluster.
    """
    given = {} if classes is None else classes
    checks.instance("classes", given, Mapping, "a mapping of partitions to Resources")
    taken: set[int] = set()
    classed: dict[Resources, list[int]] = {}
    for key, own in given.items():
        checks.instance("classes", own, Resources, "a mapping of partitions to Resources")
        if not isinstance(key, Sequence) or isinstance(key, str):
            raise TypeError(f"classes must have partitions such as range(10) as keys, got {key!r}")
        wanted = f"partitions from 0 to {clients - 1}"
        found = [checks.whole("classes", p, wanted, lambda p: 0 <= p < clients) for p in key]
        if twice := [p for p, times in Counter([*found, *taken]).items() if times > 1]:
            raise ValueError(
                f"classes has clients twice, {ranges(twice)}; each can be in one class"
            )
        if own.ray_address:
            raise ValueError(
                f"classes: ray_address = {own.ray_address!r} belongs into resources: all classes "
                "share one cluster"
            )
        taken |= set(found)
        classed.setdefault(own, []).extend(found)
    groups = [
        Group(f" of the clients {ranges(who)}", own, who) for own, who in classed.items() if who
    ]
    rest = [partition for partition in range(clients) if partition not in taken]
    return [*groups, Group("", resources, rest)] if rest else groups


def ranges(partitions: Iterable[int]) -> str:
    """Return partitions in few words, ``0-9,12``."""
    ordered = sorted(set(partitions))
    ends = [b for a, b in pairwise([-2, *ordered]) if b != a + 1]
    lasts = [a for a, b in pairwise([*ordered, math.inf]) if b != a + 1]
    pairs = zip(ends, lasts, strict=True)
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pairs)


def can_be_gpus(number: float) -> bool:
    """Return whether Ray can give so many GPUs to one client."""
    return number == 0 or _LEAST <= number < 1 or (number < math.inf and number == int(number) > 0)


def _check_custom(name: str, amount: float | Meter) -> None:
    if not isinstance(name, str) or not name or name in _RAYS_OWN or name.startswith("node:"):
        raise ValueError(
            f"custom must have names that Ray does not use itself, got {name!r}; cores and GPUs "
            "are num_cpus and num_gpus"
        )
    if callable(amount) and not isinstance(amount, type):
        return
    wanted = "an amount from 0.0001 on, or a function that measures"
    checks.real(f"custom[{name!r}]", amount, wanted, lambda n: _LEAST <= n < math.inf)
