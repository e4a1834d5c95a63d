"""The workers of a grid: started, replaced when they die, stopped."""

from __future__ import annotations

from typing import Any

import ray
from flwr.clientapp.typing import ClientAppCallable
from ray import ObjectRef
from ray.actor import ActorHandle

from fl_darex.errors import EngineError, one_line
from fl_darex.simulation.cluster import Resources
from fl_darex.simulation.worker import Setting, Worker

_BESIDE = "beside"
# Workers in a row that die before they have loaded the app. Where none ever loaded it, the app is
# to blame; where one did, somebody kills them.
_FALSE_STARTS, _BAD_LUCK = 3, 20


class Workers:
    """As many workers as fit, each idle, at work, or on its way.

    Args:
        app: The ClientApp itself, or ``"module:attribute"``.
        setting: What all clients see alike.
        resources: Of one worker.
        count: How many there are.

    Attributes:
        idle: Those that wait for clients.
        starting: Those that load the app, by the reference that is ready when they have.
    """

    def __init__(
        self, app: ClientAppCallable | str, setting: Setting, resources: Resources, count: int
    ) -> None:
        self._name = app if isinstance(app, str) else "the given ClientApp"
        self._made_of = (app if isinstance(app, str) else ray.put(app), ray.put(setting))
        self._options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
        self._kind = ray.remote(concurrency_groups={_BESIDE: 1})(Worker)  # type: ignore[call-overload]
        self._all: list[ActorHandle[Any]] = []
        self._false_starts, self._most_false_starts = 0, _FALSE_STARTS
        self.idle: list[ActorHandle[Any]] = []
        self.starting: dict[ObjectRef[Any], ActorHandle[Any]] = {}
        for _ in range(count):
            self._start()

    def __len__(self) -> int:
        return len(self._all)

    def started(self, reference: ObjectRef[Any]) -> None:
        """Hear that a worker is there, or that it will not be.

        Raises:
            EngineError: If it cannot load the app, or one after the other dies before it has.
        """
        worker = self.starting.pop(reference)
        try:
            trouble = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._false_starts += 1
            if self._false_starts == self._most_false_starts:
                died = f"{self._false_starts} workers died while they loaded {self._name}"
                raise EngineError(f"{died}: {cause(error)}") from None
            self.replace(worker)
            return
        if trouble:
            raise EngineError(f"no worker can load {self._name}: {trouble}")
        self._false_starts, self._most_false_starts = 0, _BAD_LUCK
        self.idle.append(worker)

    def replace(self, worker: ActorHandle[Any]) -> None:
        """Put a new worker in the place of one that died, or hangs."""
        self._all.remove(worker)
        ray.kill(worker)
        self._start()

    def give_back(self, worker: ActorHandle[Any], call: int) -> ObjectRef[Any]:
        """Ask a worker for what is done of a call; see `Worker.give_back`."""
        asked: ObjectRef[Any] = worker.give_back.options(concurrency_group=_BESIDE).remote(call)
        return asked

    def stop(self) -> None:
        """Stop all of them. May be called twice."""
        for worker in self._all:
            ray.kill(worker)
        self._all, self.idle, self.starting = [], [], {}

    def _start(self) -> None:
        worker = self._kind.options(**self._options).remote(*self._made_of)
        self._all.append(worker)
        self.starting[worker.load.remote()] = worker


def cause(error: BaseException) -> str:
    """Return the first line of what Ray says of a death; the others are its ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)
