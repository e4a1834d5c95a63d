"""The processes of a grid's workers: started, replaced when they die, stopped."""

from __future__ import annotations

import time
from typing import Any

import ray
from flwr.clientapp.typing import ClientAppCallable
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_darex.errors import EngineError, one_line
from fl_darex.simulation.kinds import Hand, Kind
from fl_darex.simulation.resources import CPU, GPU
from fl_darex.simulation.room import Seat
from fl_darex.simulation.worker import Loaded, Setting, Worker

_BESIDE = "beside"
# Workers in a row that die before they have loaded the app. Where none ever loaded it, the app is
# to blame; where one did, somebody kills them.
_FALSE_STARTS, _BAD_LUCK = 3, 20


class Workers:
    """Starts and stops workers.

    Args:
        app: The ClientApp itself, or ``"module:attribute"``.
        setting: What all clients see alike.

    Attributes:
        starting: Those that load the app, by the reference that is ready when they have.
        seconds: How long the last one took to start.
    """

    def __init__(self, app: ClientAppCallable | str, setting: Setting) -> None:
        self._name = app if isinstance(app, str) else "the given ClientApp"
        self._made_of = (app if isinstance(app, str) else ray.put(app), ray.put(setting))
        self._actor = ray.remote(concurrency_groups={_BESIDE: 1})(Worker)  # type: ignore[call-overload]
        self._false_starts, self._most_false_starts = 0, _FALSE_STARTS
        self._since: dict[ObjectRef[Any], float] = {}
        self.starting: dict[ObjectRef[Any], Hand] = {}
        self.seconds = 0.0

    def start(self, kind: Kind, seat: Seat, pinned: bool) -> None:
        """Start a worker.

        Args:
            kind: Whom it works for.
            seat: What it takes.
            pinned: Whether it has to be on the seat's machine, not on any that has room.
        """
        rest = {name: amount for name, amount in seat.need.items() if name not in (CPU, GPU)}
        options: dict[str, Any] = {"num_cpus": seat.need[CPU], "num_gpus": seat.need.get(GPU, 0)}
        if rest:
            options["resources"] = rest
        if pinned:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(seat.node, soft=False)
        actor = self._actor.options(**options).remote(*self._made_of, kind.meters)
        hand = Hand(actor, kind, seat)
        kind.hands.append(hand)
        ready = actor.load.remote()
        self.starting[ready], self._since[ready] = hand, time.monotonic()

    def started(self, reference: ObjectRef[Any]) -> bool:
        """Hear that a worker is there, or that it will not be; return whether it is.

        Raises:
            EngineError: If it cannot load the app, or one after the other dies before it has.
        """
        hand = self.starting[reference]
        try:
            loaded: Loaded = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._false_starts += 1
            if self._false_starts == self._most_false_starts:
                died = f"{self._false_starts} workers died while they loaded {self._name}"
                raise EngineError(f"{died}: {cause(error)}") from None
            return False
        if loaded.trouble:
            raise EngineError(f"no worker can load {self._name}: {loaded.trouble}")
        self._false_starts, self._most_false_starts = 0, _BAD_LUCK
        self.seconds = time.monotonic() - self._since[reference]
        self._expect_no_more(hand)
        hand.seat.node, hand.seat.gpus = loaded.node, loaded.gpus
        hand.kind.idle.append(hand)
        return True

    def stop(self, hand: Hand) -> None:
        """Stop a worker, whatever it does."""
        hand.kind.hands.remove(hand)
        if hand in hand.kind.idle:
            hand.kind.idle.remove(hand)
        self._expect_no_more(hand)
        ray.kill(hand.actor)

    def give_back(self, hand: Hand, call: int) -> ObjectRef[Any]:
        """Ask a worker for what is done of a call; see `Worker.give_back`."""
        asked: ObjectRef[Any] = hand.actor.give_back.options(concurrency_group=_BESIDE).remote(call)
        return asked

    def _expect_no_more(self, hand: Hand) -> None:
        for ready in [ready for ready, one in self.starting.items() if one is hand]:
            del self.starting[ready], self._since[ready]


def cause(error: BaseException) -> str:
    """Return the first line of what Ray says of a death; the others are its ids."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)
