"""Who is measured, who waits meanwhile, and what follows from what is measured."""

from __future__ import annotations

import logging

import pytest
from flwr.app import Message, RecordDict

from fl_darex.errors import EngineError
from fl_darex.flower.private import adopt_run, number
from fl_darex.simulation.jobs import Job
from fl_darex.simulation.kinds import Kinds
from fl_darex.simulation.queues import Queues
from fl_darex.simulation.resources import Resources, groups_of

GIB = 1 << 30
GPU = {"CPU": 16.0, "GPU": 2.0}


class Federation:
    """Queues of some clients on two GPUs, without workers; clients are their partitions."""

    def __init__(self, clients: int, resources: Resources) -> None:
        adopt_run("simulation")
        self.kinds = Kinds(groups_of(clients, resources, None), {"a": GPU}, 0)
        self.queues = Queues(self.kinds, lambda job: job.node)
        self.kind = self.kinds.of[0]
        self._count = 0

    def push(self, type_: str, *clients: int) -> list[Job]:
        jobs = []
        for client in clients:
            message = Message(RecordDict(), client, type_)
            self._count += 1
            number(message, f"{self._count:x}")
            jobs.append(Job(message, 1, self.kind))
        self.queues.add(jobs)
        return jobs

    def waiting(self) -> tuple[int, int]:
        """How many wait to be alone, and how many for a worker of theirs."""
        alone = self.kinds.alone(self.kind, "device")
        return len(alone.waiting), len(self.kind.waiting)

    def answered(self, job: Job, peak: float | None = None) -> object:
        job.kind.waiting.drop({job.key})
        return self.queues.over(job, {} if peak is None else {"GPU": (int(peak * GIB), 80 * GIB)})


@pytest.fixture
def eight() -> Federation:
    return Federation(64, Resources(num_cpus=0.5, num_gpus="auto"))


def test_the_first_client_of_a_type_is_alone_and_all_others_wait_for_what_it_took(
    eight: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = eight.push("train", 0, 1, 2, 3)
    assert eight.waiting() == (1, 0) and len(eight.queues) == 4
    assert eight.kind.need is None and jobs[0].kind.need == {"CPU": 0.5, "GPU": 1.0}
    with caplog.at_level(logging.INFO, "flwr"):
        assert eight.answered(jobs[0], 10) is eight.kind
    assert eight.waiting() == (0, 3)
    assert eight.kind.need == {"CPU": 0.5, "GPU": 0.1428}  # seven of 11 GiB
    assert eight.kind.most == 14
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "num-gpus: a client took 10.74 of 85.90 GB at its peak (train); with 10 % of headroom 7 "
        "fit, and each is given 0.1428"
    )


def test_the_type_that_takes_most_counts(eight: Federation) -> None:
    for type_, peak, share, news in (
        ("query", 1, 0.0138, True),
        ("train", 20, 0.3333, True),
        ("evaluate", 4, 0.3333, False),
    ):
        first, *_ = eight.push(type_, *range(40))
        assert eight.waiting() == (1, 0)
        assert (eight.answered(first, peak) is eight.kind) == news
        assert eight.kind.need is not None and eight.kind.need["GPU"] == max(share, 0.0312)
        eight.queues.drop({f"{n:x}" for n in range(1000)})
        assert len(eight.queues) == 0


def test_a_probe_that_comes_to_nothing_is_followed_by_the_next(eight: Federation) -> None:
    jobs = eight.push("train", 0, 1, 2)
    assert eight.answered(jobs[0]) is None
    assert eight.waiting() == (1, 0) and len(eight.queues) == 2
    # It was given up, as were those that waited for it.
    dropped = eight.queues.drop({job.key for job in jobs})
    assert dropped == [jobs[2], jobs[1]] or set(dropped) == {jobs[1], jobs[2]}
    for job in dropped:
        eight.queues.over(job, {})
    assert len(eight.queues) == 0
    assert eight.push("train", 4)[0].kind.once


def test_who_ran_out_of_memory_is_measured_alone_and_all_get_more(eight: Federation) -> None:
    first, second = eight.push("train", 0, 1)
    eight.answered(first, 10)
    assert eight.queues.alone(second, "device", "CUDA out of memory") == ""
    assert second.kind.once and second.alone and not second.kind.apart
    assert eight.answered(second, 30) is eight.kind
    assert eight.kind.need == {"CPU": 0.5, "GPU": 0.5}


def test_who_was_alone_already_is_reported_with_the_way_out(eight: Federation) -> None:
    (job,) = eight.push("train", 0)
    said = eight.queues.alone(job, "device", "CUDA out of memory")
    assert said.startswith("out of memory, also with whole GPUs in a fresh worker: CUDA out of mem")
    # The machine's memory is another one.
    assert eight.queues.alone(job, "machine", "MemoryError: ") == ""
    assert job.kind.apart and job.kind.need == {"CPU": 0.5, "GPU": 1.0}
    said = eight.queues.alone(job, "machine", "MemoryError: ")
    assert said.startswith("out of memory, also in a fresh worker with a machine to itself: Memory")


def test_no_more_share_a_gpu_than_all_gpus_need_for_all_clients() -> None:
    for clients, share in ((4, 0.5), (5, 0.3333), (2, 1.0), (64, 0.1)):
        few = Federation(clients, Resources(num_cpus=0.1, num_gpus=0.1))
        assert few.kind.need == {"CPU": 0.1, "GPU": share}
    limited = Federation(64, Resources(num_cpus=0.1, num_gpus=0.1, actors=4))
    assert limited.kind.need == {"CPU": 0.1, "GPU": 0.5} and limited.kind.most == 4


def test_a_memory_that_cannot_be_read_is_an_error_with_the_way_out(eight: Federation) -> None:
    (job,) = eight.push("train", 0)
    with pytest.raises(EngineError, match=r"resources.num-gpus = 'auto', but .* \(no torch\); set"):
        eight.queues.over(job, {"GPU": "no torch"})
