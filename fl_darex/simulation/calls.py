"""Which worker has which clients: calls that are made, come back, fail, or are given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from logging import WARNING
from typing import Any

import ray
from flwr.app import Message
from flwr.common.logger import log
from ray import ObjectRef

from fl_darex.errors import one_line
from fl_darex.flower.private import ErrorCode
from fl_darex.simulation.client import failure
from fl_darex.simulation.jobs import Job, Records
from fl_darex.simulation.kinds import Hand, Kinds
from fl_darex.simulation.memory import MACHINE, Reading
from fl_darex.simulation.parcels import pack, unpack
from fl_darex.simulation.queues import Queues
from fl_darex.simulation.staff import Staff
from fl_darex.simulation.states import LOST, Held, States
from fl_darex.simulation.worker import Answered, Task
from fl_darex.simulation.workers import cause

_WAIT_SECONDS = 0.05
_PATIENCE = 1.0, 10.0  # seconds, and times what was expected, until work is taken back
_LIVES = 2  # workers that may die of one message


@dataclass(eq=False)
class _Call:
    number: int
    hand: Hand
    jobs: dict[int, Job]  # by place, those whose reply it still owes
    large_states: ObjectRef[Any]
    started: float
    patience: float
    taken_back: bool = False


class Calls:
    """Gives clients to workers and takes their replies and states.

    Args:
        kinds: Of workers.
        staff: Who runs them.
        partitions: Partition by node id.
        answer: Called with a message and its reply.

    Attributes:
        states: What clients have left.
        waiting: Clients that no worker has yet.
    """

    def __init__(
        self,
        kinds: Kinds,
        staff: Staff,
        partitions: Mapping[int, int],
        answer: Callable[[Message, Message], None],
    ) -> None:
        self._kinds, self._staff = kinds, staff
        self._partitions, self._answer = partitions, answer
        self._calls: dict[ObjectRef[Any], _Call] = {}  # by the reference of their replies
        self._taken_back: dict[ObjectRef[Any], _Call] = {}
        self._busy: set[int] = set()
        self._numbers = count(1)
        self.states = States()
        self.waiting = Queues(kinds, lambda job: partitions[job.node])

    @property
    def running(self) -> int:
        """Clients that a worker has."""
        return len(self._busy)

    def add(self, messages: Sequence[Message], run_id: int) -> None:
        """Take messages to clients.

        Args:
            messages: With their ids.
            run_id: What clients see as ``context.run_id``.
        """
        records = Records()
        nodes = [message.metadata.dst_node_id for message in messages]
        kinds = [self._kinds.of[self._partitions[node]] for node in nodes]
        self.waiting.add([records.job(m, run_id, k) for m, k in zip(messages, kinds, strict=True)])
        self._staff.settle()  # before those who have workers keep them busy
        self._dispatch()

    def collect(self) -> None:
        """Take what has come, wait a little if nothing has, and give out what can be.

        Raises:
            EngineError: If no worker can load the app, or what clients take cannot be measured.
        """
        starting = self._staff.starting
        wanted = [*self._taken_back, *self._calls, *starting]
        if not wanted:
            if len(self.waiting):  # a machine may come back
                time.sleep(_WAIT_SECONDS)
                self._dispatch()
            return
        ready, _ = ray.wait(wanted, num_returns=1, timeout=_WAIT_SECONDS)
        if ready:  # others may have finished meanwhile
            ready, _ = ray.wait(wanted, num_returns=len(wanted), timeout=0)
        for reference in ready:
            if reference in self._taken_back:
                self._returned(reference)
            elif reference in self._calls:
                self._finished(reference)
            elif reference in starting:
                self._staff.started(reference)
        self._take_back_from_the_slow()
        self._dispatch()

    def forget(self, keys: Collection[str]) -> tuple[list[Job], list[Job]]:
        """Give up messages, and replace the workers that are at them.

        Args:
            keys: Ids of messages.

        Returns:
            Those that had no turn, and those that a worker had.
        """
        late: list[Job] = []
        for reference, call in list(self._calls.items()):
            given_up = [job for job in call.jobs.values() if job.key in keys]
            if given_up:
                late += given_up
                self._end(reference)
                self._staff.replace(call.hand)
                self.waiting.add(job for job in call.jobs.values() if job.key not in keys)
        no_turn = self.waiting.drop(keys)
        for job in late:
            job.kind.waiting.give_up(job)
        for job in [*late, *no_turn]:
            self.waiting.over(job, {})
        return no_turn, late

    def _dispatch(self) -> None:
        for kind in self._kinds:
            while kind.idle and (jobs := kind.waiting.take(len(kind.hands), self._busy)):
                self._send(self._staff.next_of(kind), jobs)
        self._staff.settle()

    def _send(self, hand: Hand, jobs: list[Job]) -> None:
        places: dict[ObjectRef[Any], int] = {}
        tasks = [
            Task(
                job.message,
                {name: places.setdefault(ref, len(places)) for name, ref in job.models.items()},
                self._partitions[job.node],
                job.run_id,
            )
            for job in jobs
        ]
        number, states = next(self._numbers), [self.states.of(job.node) for job in jobs]
        outcome: Any = hand.actor.run.options(num_returns=2).remote(
            number, pack(tasks), [[ref] for ref in places], states
        )
        replies, large_states = outcome
        expected = sum(map(hand.kind.times.expected, jobs))
        patience = max(_PATIENCE[0], _PATIENCE[1] * expected)
        known = dict(enumerate(jobs))
        started = time.monotonic()
        self._calls[replies] = _Call(number, hand, known, large_states, started, patience)
        self._busy |= {job.node for job in jobs}

    def _finished(self, reference: ObjectRef[Any]) -> None:
        call = self._calls[reference]
        try:
            found: list[Answered] = ray.get(reference)[:]
        except ray.exceptions.RayError as error:
            self._failed(reference, error)
            return
        for answered in found:
            self._answered(call, answered)
        for asked in [key for key, one in self._taken_back.items() if one is call]:
            self._returned(asked)  # at once: who was given back must not be forgotten meanwhile
        self._end(reference)
        if any(answered.spoilt for answered in found):
            log(WARNING, "a worker that may have lost its GPU with a client's error is replaced")
            self._staff.replace(call.hand)
            self.waiting.add(call.jobs.values())
        else:
            self._staff.free(call.hand)

    def _answered(self, call: _Call, answered: Answered) -> None:
        job = call.jobs.pop(answered.place, None)
        if job is None:  # it was given up
            return
        self._busy.discard(job.node)
        if answered.state == LOST:
            log(
                WARNING,
                "what client %d left is lost with a machine; it begins anew",
                self._partitions[job.node],
            )
            self.states.lose(job.node)
            self.waiting.add([job])
            return
        reply = unpack(answered.reply)
        if answered.ran_out:
            self._ran_out(job, answered.ran_out, one_line(reply.error.reason))
            return
        job.kind.waiting.learn(job, answered.seconds)
        self.states.take(job.node, answered.state, Held([call.large_states], answered.place))
        self._reply(job, reply, {} if reply.has_error() else answered.readings)

    def _reply(
        self, job: Job, reply: Message, readings: Mapping[str, Reading | str] | None = None
    ) -> None:
        self._answer(job.message, reply)
        if resized := self.waiting.over(job, readings or {}):
            self._staff.resize(resized)

    def _ran_out(self, job: Job, where: str, reason: str) -> None:
        """Run a client again that ran out of memory, alone, or report it."""
        if trouble := self.waiting.alone(job, where, reason):
            self._reply(job, failure(job.message, trouble))

    def _failed(self, reference: ObjectRef[Any], error: Exception) -> None:
        """Run the clients of a call again that came to nothing, or report them."""
        call = self._end(reference)
        jobs = [*call.jobs.values()]
        # An error inside the worker leaves it alive; and it is nothing that comes by chance.
        lives = isinstance(error, ray.exceptions.RayTaskError)
        if lives:
            trouble = "the worker failed"
            self._staff.free(call.hand)
        else:
            trouble = "the worker died"
            self._staff.replace(call.hand)
        if isinstance(error, ray.exceptions.OutOfMemoryError) and len(jobs) == 1:
            self._ran_out(jobs[0], MACHINE, cause(error))
            return
        again = []
        for job in jobs:
            job.deaths += len(jobs) == 1
            if job.deaths >= (1 if lives else _LIVES):
                reason = f"{trouble}: {cause(error)}"
                self._reply(job, failure(job.message, reason, ErrorCode.UNKNOWN))
            else:
                job.alone = True
                again.append(job)
        if again:
            log(
                WARNING,
                "%s (%s); the clients %s that it had are run again, each alone",
                *(trouble, cause(error), sorted(self._partitions[job.node] for job in again)),
            )
        self.waiting.add(again)

    def _end(self, reference: ObjectRef[Any]) -> _Call:
        """Expect nothing more of a call."""
        call = self._calls.pop(reference)
        self._taken_back = {key: c for key, c in self._taken_back.items() if c is not call}
        self._busy -= {job.node for job in call.jobs.values()}
        return call

    def _take_back_from_the_slow(self) -> None:
        """Let no client wait behind one that takes much longer than was expected."""
        now = time.monotonic()
        for call in self._calls.values():
            if len(call.jobs) > 1 and not call.taken_back and now - call.started > call.patience:
                call.taken_back = True
                self._taken_back[self._staff.give_back(call.hand, call.number)] = call

    def _returned(self, reference: ObjectRef[Any]) -> None:
        call = self._taken_back.pop(reference)
        try:
            done, rest = ray.get(reference)
        except ray.exceptions.RayError:
            return  # the worker died, which its call says as well
        for answered in done:
            self._answered(call, answered)
        jobs = [call.jobs.pop(place) for place in rest if place in call.jobs]
        self._busy -= {job.node for job in jobs}
        self.waiting.add(jobs)
