"""The process that runs clients, one after the other."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from ray import ObjectRef

from fl_darex.errors import one_line
from fl_darex.registry import load
from fl_darex.simulation.client import answer, failure
from fl_darex.simulation.memory import Meter, Reading, let_go, ran_out, read, spoilt
from fl_darex.simulation.parcels import LARGE, Parcel, pack, size, unpack
from fl_darex.simulation.resources import GPU
from fl_darex.simulation.states import ASIDE, LOST, UNCHANGED, Boxed, State, opened

# The model of the current round and of the one before: a client may still be on its way.
_KEPT_MODELS = 2


class Setting(NamedTuple):
    """What all clients of a grid see alike.

    Attributes:
        partitions: How many there are.
        run_config: ``context.run_config``.
    """

    partitions: int
    run_config: Mapping[str, Any]


class Task(NamedTuple):
    """What one client is asked.

    Attributes:
        message: Without the records that are in the object store.
        models: Those, by name: places in the call's list of references.
        partition: The client's.
        run_id: The run's.
    """

    message: Message
    models: dict[str, int]
    partition: int
    run_id: int


class Loaded(NamedTuple):
    """How a worker has started.

    Attributes:
        trouble: Why the app cannot be loaded, in a line; empty: it is there.
        node: The id of its machine.
        gpus: The ids of its GPUs.
    """

    trouble: str
    node: str = ""
    gpus: tuple[str, ...] = ()


class Answered(NamedTuple):
    """What became of one client.

    Attributes:
        place: In the call.
        reply: The reply, packed.
        seconds: It took.
        state: What it left, packed; None: nothing; or a word of `fl_darex.simulation.states`.
        ran_out: Whose memory was too small, see `fl_darex.simulation.memory`; empty: nobody's.
        readings: What the worker's meters say after it, or why they cannot.
        spoilt: Whether the worker can run no other client; it takes none after this one.
    """

    place: int
    reply: Parcel
    seconds: float
    state: Parcel | str | None
    ran_out: str = ""
    readings: Mapping[str, Reading | str] = {}
    spoilt: bool = False


class Worker:
    """Holds the ClientApp, and with it whatever the app caches: model, tokenizer, data.

    Its methods run in two threads: `run`, always the same one, and `give_back` beside it.

    Args:
        app: The ClientApp itself, or ``"module:attribute"``.
        setting: What all clients see alike.
        meters: What is measured after each client, by the name of a resource.
    """

    def __init__(
        self, app: ClientAppCallable | str, setting: Setting, meters: Mapping[str, Meter]
    ) -> None:
        self._given, self._setting, self._meters = app, setting, meters
        self._models: OrderedDict[str, ArrayRecord] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._call = 0
        self._todo: deque[int] = deque()
        self._done: list[Answered] = []
        self._aside: dict[int, Parcel] = {}

    def load(self) -> Loaded:
        """Load the app and say where this is, or why it cannot be loaded."""
        try:
            given = self._given
            self._app = load(given, "ClientApp") if isinstance(given, str) else given
        except (Exception, SystemExit) as error:
            return Loaded(one_line(f"{type(error).__name__}: {error}"))
        # Flower collects garbage for each record that it reads: what is loaded need not be seen.
        gc.collect()
        gc.freeze()
        here = ray.get_runtime_context()
        return Loaded("", here.get_node_id(), tuple(here.get_accelerator_ids().get(GPU, ())))

    def run(
        self, call: int, packed: Parcel, models: Sequence[Boxed], states: Sequence[State]
    ) -> tuple[list[Answered], dict[int, Parcel]]:
        """Run some clients.

        Args:
            call: Number of this call, from 1.
            packed: A `Task` for each.
            models: The references that the tasks speak of.
            states: What each client left after its last message.

        Returns:
            What became of them, without those that were given back or could have no turn, and the
            large ones of the states that they leave, by place.
        """
        asyncio.set_event_loop(self._loop)  # as a main thread has one without asking
        tasks: list[Task] = unpack(packed)
        with self._lock:
            self._call, self._todo = call, deque(range(len(tasks)))
            self._done, self._aside = [], {}
        while (place := self._next()) is not None:
            found = self._one(place, tasks[place], models, states[place])
            with self._lock:
                self._done.append(found)
                if found.spoilt:
                    self._todo.clear()
        with self._lock:
            self._call, done, aside = 0, self._done, self._aside
        return done, aside

    def give_back(self, call: int) -> tuple[list[Answered], list[int]]:
        """Return what is done of a call that takes long, and which clients had no turn yet.

        Both are no longer part of what `run` returns, but for clients with a large state.

        Args:
            call: Its number; nothing is returned of a call that is over.
        """
        with self._lock:
            if call != self._call:
                return [], []
            done = [found for found in self._done if found.state != ASIDE]
            self._done = [found for found in self._done if found.state == ASIDE]
            rest = list(self._todo)
            self._todo.clear()
        return done, rest

    def _next(self) -> int | None:
        with self._lock:
            return self._todo.popleft() if self._todo else None

    def _one(self, place: int, task: Task, models: Sequence[Boxed], state: State) -> Answered:
        start = time.perf_counter()
        message = task.message
        left: Any = UNCHANGED
        out, lost = "", False
        try:
            context = self._context(task, state)
        except ray.exceptions.ObjectLostError:
            return Answered(place, pack(None), 0.0, LOST)
        try:
            reply, after = answer(self._whole(task, models), message, context)
            packed = pack(reply)
            left = self._kept(place, after)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            packed = pack(failure(message, f"{type(error).__name__}: {error}"))
            out = ran_out(error)
            lost = not out and spoilt(error)
        seconds = time.perf_counter() - start
        readings = read(self._meters) if self._meters else {}
        if out:
            let_go()  # no longer held by the error; others share this memory
        return Answered(place, packed, seconds, left, out, readings, lost)

    def _context(self, task: Task, state: State) -> Context:
        before = RecordDict() if state is None else unpack(opened(state))
        config: dict[str, Any] = {
            "partition-id": task.partition,
            "num-partitions": self._setting.partitions,
        }
        return Context(
            task.run_id,
            task.message.metadata.dst_node_id,
            config,
            before,
            dict(self._setting.run_config),
        )

    def _whole(self, task: Task, models: Sequence[Boxed]) -> ClientAppCallable:
        def app(message: Message, context: Context) -> Message:
            for name, place in task.models.items():
                message.content[name] = self._model(models[place][0])
            return self._app(message, context)

        return app

    def _kept(self, place: int, state: RecordDict) -> Parcel | str | None:
        if not len(state):
            return None
        packed = pack(state)
        if size(packed) < LARGE:
            return packed
        self._aside[place] = packed
        return ASIDE

    def _model(self, reference: ObjectRef[Any]) -> ArrayRecord:
        key = reference.hex()
        if key not in self._models:
            self._models[key] = unpack(ray.get(reference))
            while len(self._models) > _KEPT_MODELS:
                self._models.popitem(last=False)
        # A record is mutable and apps do empty it; the arrays in it are not.
        return self._models[key].copy()
