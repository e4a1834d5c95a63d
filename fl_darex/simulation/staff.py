"""Which kind of worker is started next, and whose place it takes."""

from __future__ import annotations

import math
import time
from logging import WARNING

from flwr.common.logger import log
from ray import ObjectRef

from fl_darex.simulation.kinds import Hand, Kind, Kinds
from fl_darex.simulation.resources import GPU
from fl_darex.simulation.room import Seat, machines, place
from fl_darex.simulation.workers import Workers

_TURN = 60.0  # seconds until clients without a worker get one although others have work for theirs
_WORTH = 2.0  # a worker takes an idle one's place if there is so many times its start to be done
_LOOK_AGAIN = 2.0  # seconds


class Staff:
    """Keeps as many workers of each kind as what waits calls for, and as fit.

    At first, and whenever nothing waits, the room that is left is given to all classes of clients:
    one worker to each if that is possible, then to those that need GPUs or custom resources, in
    proportion to their clients, then to the others. Where clients wait who have no worker, idle
    ones of other kinds are stopped in their favour, though not the last one of a kind that has work
    to do, unless they have waited for a minute. Where they have some, idle ones of kinds that have
    nothing to do are, if that is worth the start.

    Args:
        workers: Starts and stops them.
        kinds: Of all clients.

    Attributes:
        starting: Those of `Workers`.
        give_back: That of `Workers`.
    """

    def __init__(self, workers: Workers, kinds: Kinds) -> None:
        self._workers, self._kinds = workers, kinds
        self._looked = -math.inf
        self._said: set[Kind] = set()
        self.starting, self.give_back = workers.starting, workers.give_back

    @property
    def idle(self) -> list[Hand]:
        """Workers that have nothing to do."""
        return [hand for kind in self._kinds for hand in kind.idle]

    def begin(self) -> None:
        """Start the first workers; say if some clients will have to take turns with others."""
        self.settle()
        for kind in self._kinds:
            if kind.clients and kind.need is not None and not kind.hands:
                log(
                    WARNING,
                    "there is no room for workers of all classes at once: those%s take turns with "
                    "others, and what is started anew takes its time in each round",
                    kind.whose or " of the clients in no class",
                )

    def settle(self) -> None:
        """Start what is wanted and fits, and stop what is in its way or no longer of use."""
        for kind in self._kinds:
            if kind.once and not len(kind.waiting) and not kind.clients:
                for hand in list(kind.idle):
                    self._workers.stop(hand)
        wanted = {kind: self._lacks(kind) for kind in self._kinds}
        wanted = {kind: number for kind, number in wanted.items() if number > 0}
        evicts = bool(wanted)
        if not evicts and not any(len(kind.waiting) for kind in self._kinds):
            wanted = {kind: kind.clients for kind in self._kinds if kind.clients}
        for kind in self._kinds:
            hungry = len(kind.waiting) and not kind.hands
            kind.hungry = (kind.hungry or time.monotonic()) if hungry else None
        while wanted:
            kind = max(wanted, key=lambda kind: self._claim(kind, wanted[kind]))
            if len(kind.hands) >= kind.most or not self._hire(kind, evicts):
                del wanted[kind]
            elif self._lacks(kind) <= 0 if evicts else len(kind.hands) >= wanted[kind]:
                del wanted[kind]

    def next_of(self, kind: Kind) -> Hand:
        """Take an idle worker of a kind: where clients share GPUs, one on the least busy GPU."""
        if kind.need is None or not 0 < kind.need.get(GPU, 0) < 1:
            return kind.idle.pop()
        idle = set(self.idle)
        busy = [hand.seat for hand in self._kinds.hands() if hand not in idle]

        def crowd(hand: Hand) -> int:
            node, gpus = hand.seat.node, hand.seat.gpus
            return sum(seat.node == node and seat.gpus == gpus for seat in busy)

        chosen = min(reversed(kind.idle), key=crowd)
        kind.idle.remove(chosen)
        return chosen

    def free(self, hand: Hand) -> None:
        """Hear that a worker has nothing to do any more."""
        if hand.leaving or hand.kind.once:
            self._workers.stop(hand)
        else:
            hand.kind.idle.append(hand)

    def replace(self, hand: Hand) -> None:
        """Put a new worker in the place of one that died, or hangs."""
        self._workers.stop(hand)
        self._look()
        if not hand.kind.once and not hand.leaving and len(hand.kind.hands) < hand.kind.most:
            self._hire(hand.kind, evicts=False)

    def started(self, reference: ObjectRef[object]) -> None:
        """Hear that a worker is there, or that it will not be; errors are those of `Workers`."""
        hand = self._workers.starting[reference]
        if not self._workers.started(reference):
            self.replace(hand)
            return
        # Ray chooses the GPU. Where that is another one than was thought, others may wait in vain.
        late = self._workers.starting.values()
        there = [h.seat for h in self._kinds.hands() if h not in late and not h.leaving]
        for other in [one for one in late if one.seat.node == hand.seat.node and one.seat.gpus]:
            machine = {hand.seat.node: self._kinds.among.get(hand.seat.node, {})}
            if place(machine, there, other.seat, []) is None:
                self._workers.stop(other)

    def resize(self, kind: Kind) -> None:
        """Replace workers of a kind that take less than they should from now on."""
        for hand in list(kind.hands):
            if hand.seat.need != kind.need:
                self._leave(hand)

    def stop(self) -> None:
        """Stop all workers. May be called twice."""
        for hand in self._kinds.hands():
            self._workers.stop(hand)

    def _lacks(self, kind: Kind) -> int:
        """Return how many clients wait for whom no worker is on its way."""
        starting = sum(hand.kind is kind for hand in self._workers.starting.values())
        return len(kind.waiting) - starting - len(kind.idle)

    def _claim(self, kind: Kind, wanted: int) -> tuple[bool, int, bool, float]:
        """Return who comes first: who has nothing, the hardest to place, then by proportion."""
        none = not kind.hands
        return none, -kind.most if none else 0, kind.rare, wanted / (len(kind.hands) + 1)

    def _hire(self, kind: Kind, evicts: bool) -> bool:
        """Start a worker if there is room; say whether."""
        if kind.need is None:
            return False
        everyone = self._kinds.hands()
        movable = {hand.seat: hand for hand in self._movable(kind)} if evicts else {}
        wanted = Seat(kind.need, kind.apart)
        found = place(self._kinds.among, [hand.seat for hand in everyone], wanted, movable)
        if found is None:
            self._complain(kind, wanted)
            return False
        seat, leaving = found
        full = len(everyone) >= self._kinds.limit
        if full and not leaving:
            leaving = list(movable)[:1]
        for gone in leaving:
            self._leave(movable[gone])
        if full and len(self._kinds.hands()) == len(everyone):
            return False  # as many as are allowed, and all of them are at work
        self._workers.start(kind, seat, pinned=self._kinds.mixed)
        return True

    def _movable(self, kind: Kind) -> list[Hand]:
        """Return the workers of other kinds whose place one of this kind may take."""
        starting = set(self._workers.starting.values())
        idle = starting.union(self.idle)
        hungry = not kind.hands
        turn = kind.hungry is not None and time.monotonic() - kind.hungry > _TURN
        todo = kind.waiting.seconds() / max(len(kind.hands), 1)
        worth = hungry or todo > _WORTH * self._workers.seconds
        found: list[Hand] = []
        for other in self._kinds:
            if other is kind:
                continue
            free = [hand for hand in other.hands if hand in idle]
            if not len(other.waiting):
                found += free if worth else []
            elif turn:  # but for those that start, or nobody would ever come to work
                found += [h for h in other.hands if h not in starting and not other.once]
            elif hungry:
                found += free[: len(other.hands) - 1]
        return found

    def _leave(self, hand: Hand) -> None:
        hand.leaving = True
        if hand in hand.kind.idle or hand in self._workers.starting.values():
            self._workers.stop(hand)

    def _look(self) -> None:
        """See which machines are there."""
        self._kinds.among, self._looked = machines(), time.monotonic()

    def _complain(self, kind: Kind, wanted: Seat) -> None:
        """Say once if clients cannot go on because a machine is gone; look out for others."""
        if kind.hands or place(self._kinds.among, [], wanted, []) is not None:
            self._said.discard(kind)
            return
        if kind not in self._said:
            self._said.add(kind)
            log(
                WARNING,
                "no machine that is left has room for a worker%s (%s); they wait for one",
                kind.whose,
                ", ".join(f"{name} {amount:g}" for name, amount in wanted.need.items()),
            )
        if time.monotonic() - self._looked > _LOOK_AGAIN:
            self._look()
