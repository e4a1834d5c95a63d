"""How many clients share a GPU: measured on the first client, and again where one ran out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from logging import INFO

from flwr.common.logger import log

from fl_darex.errors import EngineError
from fl_darex.simulation.jobs import Job
from fl_darex.simulation.kinds import Kind, Kinds
from fl_darex.simulation.memory import DEVICE, HEADROOM, Reading, slots_of
from fl_darex.simulation.resources import GPU


class Probing:
    """Holds clients back until one of them has told what they need.

    The first client of each type of message, the probe, is alone with whole GPUs. Its type may be
    one that takes little (a query), so that another one (training) is measured in its turn; the
    largest counts. So does what clients take that are run again alone.

    Args:
        kind: Of clients that something is measured of.
        kinds: All.
    """

    def __init__(self, kind: Kind, kinds: Kinds) -> None:
        self._kind, self._kinds = kind, kinds
        self._held: dict[str, list[Job]] = {}  # by type, while its probe is on its way
        self._probes: dict[str, Job] = {}
        self._slots: dict[str, int] = {}
        self._known: set[str] = set()

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait for a worker, or for what is measured first."""
        free = []
        for job in jobs:
            if job.type in self._known:
                free.append(job)
            elif job.type in self._probes:
                self._held.setdefault(job.type, []).append(job)
            else:
                self._probe(job)
        self._kind.waiting.add(free)

    def drop(self, keys: Collection[str]) -> list[Job]:
        """Let the jobs of these messages wait no more, and return those that did here."""
        dropped = [job for jobs in self._held.values() for job in jobs if job.key in keys]
        for type_, jobs in self._held.items():
            self._held[type_] = [job for job in jobs if job.key not in keys]
        return dropped

    def heard(self, job: Job, readings: Mapping[str, Reading | str]) -> bool:
        """Hear what a client took that was alone, and whether workers have another size now.

        Args:
            job: The client's.
            readings: By resource; empty: it came to nothing, so that the next one is measured.

        Raises:
            EngineError: If it cannot be measured.
        """
        resized = self._measured(job, readings) if readings else False
        if self._probes.get(job.type) is job:
            del self._probes[job.type]
            held = self._held.pop(job.type, [])
            if readings:
                self._known.add(job.type)
            self.add(held)
        return resized

    def _probe(self, job: Job) -> None:
        self._probes[job.type] = job
        job.kind, job.alone = self._kinds.alone(self._kind, DEVICE), True
        job.kind.waiting.add([job])

    def _measured(self, job: Job, readings: Mapping[str, Reading | str]) -> bool:
        before = dict(self._slots)
        for name, reading in readings.items():
            key = "num-gpus" if name == GPU else f"custom.{name}"
            if isinstance(reading, str):
                raise EngineError(
                    f"resources.{key}{self._kind.whose} = 'auto', but what a client takes cannot "
                    f"be measured ({reading}); set a number"
                )
            self._slots[name] = min(slots_of(reading), before.get(name, math.inf))  # type: ignore
        if self._slots == before:
            return False
        resized = self._kinds.share(self._kind, self._slots)
        self._kinds.alone(self._kind, DEVICE).clients = 0
        for name, reading in readings.items():
            if isinstance(reading, tuple) and self._slots[name] != before.get(name):
                self._say(job, name, reading)
        return resized

    def _say(self, job: Job, name: str, reading: Reading) -> None:
        peak, total = reading
        need = self._kind.need or {}
        log(
            INFO,
            "%s%s: a client took %.2f of %.2f GB at its peak (%s); with %d %% of headroom %d fit, "
            "and each is given %g",
            "num-gpus" if name == GPU else name,
            self._kind.whose,
            *(peak / 1e9, total / 1e9, job.type, round(100 * (HEADROOM - 1)), self._slots[name]),
            need.get(name, 0),
        )
