"""Which clients go to a worker next, and how many at once: learned from the times before."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable

from fl_darex.simulation.jobs import Job

_SLICE = 0.05  # seconds of work that a worker is given at once, so that a call's cost is little
_MOST = 256  # clients that it is given at once


class Times:
    """How long clients took: each its last message of a type, and the mean of all."""

    def __init__(self) -> None:
        self._took: dict[tuple[str, int], float] = {}
        self._mean: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def learn(self, job: Job, seconds: float) -> None:
        """Hear how long a client took."""
        self._took[job.type, job.node] = seconds
        mean = self._mean[job.type]
        mean[0] += 1
        mean[1] += (seconds - mean[1]) / mean[0]

    def expected(self, job: Job) -> float:
        """Return how many seconds a client will take, as far as is known; infinite: it is not."""
        if (known := self._took.get((job.type, job.node))) is not None:
            return known
        count, mean = self._mean[job.type]
        return mean if count else math.inf


class Waiting:
    """Jobs that no worker has yet, those that take longest first.

    How long a client takes is what it took for its last message of that kind, and until then the
    mean of the others. Clients that take less than 50 ms go to a worker together. One that did not
    answer in time is last from then on, until it answers: it may hang again.

    Args:
        times: Learned from clients that others may wait for, too.
    """

    def __init__(self, times: Times) -> None:
        self._jobs: list[Job] = []  # the next one is the last
        self._late: set[int] = set()
        self._times = times

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait; of equal ones those that came first are first."""
        self._jobs = [*reversed(list(jobs)), *self._jobs]
        self._jobs.sort(key=lambda job: (job.node not in self._late, job.alone, self.expected(job)))

    def take(self, workers: int, busy: Collection[int]) -> list[Job]:
        """Take what one worker is given; empty: there is nothing for it.

        Args:
            workers: Those that share what waits.
            busy: Nodes that a worker is at: what they leave is not known before.
        """
        share = math.ceil(len(self._jobs) / (2 * workers))
        taken: list[Job] = []
        skipped: list[Job] = []
        seconds, nodes = 0.0, set(busy)
        while self._jobs and len(taken) < min(max(share, 1), _MOST):
            job = self._jobs[-1]
            if job.node in nodes:
                skipped.append(self._jobs.pop())
                continue
            seconds += self.expected(job)
            if taken and (job.alone or seconds > _SLICE):
                break
            taken.append(self._jobs.pop())
            nodes.add(job.node)
            if job.alone:
                break
        self._jobs.extend(reversed(skipped))
        return taken

    def drop(self, keys: Collection[str]) -> list[Job]:
        """Let the jobs of these messages wait no more, and return them."""
        dropped = [job for job in self._jobs if job.key in keys]
        if dropped:
            self._jobs = [job for job in self._jobs if job.key not in keys]
        return dropped

    def give_up(self, job: Job) -> None:
        """Hear that a client did not answer in time."""
        self._late.add(job.node)

    def learn(self, job: Job, seconds: float) -> None:
        """Hear how long a client took."""
        self._late.discard(job.node)
        self._times.learn(job, seconds)

    def expected(self, job: Job) -> float:
        """Return how many seconds a client will take, as far as is known; infinite: it is not."""
        return self._times.expected(job)

    def seconds(self) -> float:
        """Return how long all that wait will take, one after the other."""
        return sum(map(self.expected, self._jobs))
