"""Where clients wait: for a worker of their class, for what is measured first, or to be alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from logging import WARNING

from flwr.common.logger import log

from fl_darex.simulation.jobs import Job
from fl_darex.simulation.kinds import Kind, Kinds
from fl_darex.simulation.memory import ALONE, DEVICE, WAY_OUT, Reading
from fl_darex.simulation.probing import Probing
from fl_darex.simulation.resources import GPU
from fl_darex.simulation.waiting import Waiting


class Queues:
    """All jobs that no worker has yet.

    Args:
        kinds: Of workers.
        partition: Says which partition a job is for.
    """

    def __init__(self, kinds: Kinds, partition: Callable[[Job], int]) -> None:
        self._kinds, self._partition = kinds, partition
        self._probing = {kind: Probing(kind, kinds) for kind in kinds if _is_measured(kind)}

    def __len__(self) -> int:
        held = sum(map(len, self._probing.values()))
        return held + sum(len(kind.waiting) for kind in self._kinds)

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait."""
        by_kind: dict[Kind, list[Job]] = {}
        for job in jobs:
            by_kind.setdefault(job.kind, []).append(job)
        for kind, some in by_kind.items():
            self._probing.get(kind, kind.waiting).add(some)

    def drop(self, keys: Collection[str]) -> list[Job]:
        """Let the jobs of these messages wait no more, and return them."""
        places: list[Probing | Waiting] = [*self._probing.values()]
        places += [kind.waiting for kind in self._kinds]
        return [job for place in places for job in place.drop(keys)]

    def over(self, job: Job, readings: Mapping[str, Reading | str]) -> Kind | None:
        """Hear that nothing more is done for a job, and which kind's workers have a new size now.

        Args:
            job: The job.
            readings: What it took, by resource; empty: that is not known.

        Raises:
            EngineError: If it should be, and cannot be measured.
        """
        kind = self._class(job)
        probing = self._probing.get(kind) if job.kind.once else None
        return kind if probing is not None and probing.heard(job, readings) else None

    def alone(self, job: Job, where: str, reason: str) -> str:
        """Let a job that ran out of memory wait to be run alone.

        Args:
            job: The job.
            where: Whose memory was too small.
            reason: What was said of it.

        Returns:
            What to answer if it was alone already; empty: it waits.
        """
        reason = reason.rstrip(": ")  # Python's own MemoryError has no words
        if job.kind.once and (where == DEVICE or job.kind.apart):
            return f"out of memory, also {ALONE[where]}: {reason}; {WAY_OUT[where]}"
        kind = self._class(job)
        share = kind.need.get(GPU) if kind.need else None
        key, amount = ("num-cpus", kind.resources.num_cpus) if not share else ("num-gpus", share)
        log(
            WARNING,
            "client %d ran out of memory (%s); it is run again alone, %s. With more of "
            "resources.%s%s (now %g) fewer clients run at once",
            *(self._partition(job), reason, ALONE[where], key, kind.whose, amount),
        )
        job.kind, job.alone = self._kinds.alone(kind, where), True
        self.add([job])
        return ""

    def _class(self, job: Job) -> Kind:
        return self._kinds.of[self._partition(job)]


def _is_measured(kind: Kind) -> bool:
    return bool(kind.resources.meters) and not kind.once
