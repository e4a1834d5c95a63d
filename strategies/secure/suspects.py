"""Clients that are left out of secure aggregation, and the search for those that spoil sums.

A client that breaks the protocol for all to see is left out from then on. One that sends random
numbers in place of its masked update is not seen: the sum makes no sense, and nobody can say whose
fault it is. So all that were in it are suspects, and the next rounds do without most of them: half
of the suspects take part beside those that are above suspicion. If the sum makes sense they are
above suspicion, too; if not, half of them are tried next (Hwang's binary splitting, 1972). Who
spoils a sum in which everybody else is above suspicion is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import WARNING
from typing import Any

from flwr.common.logger import log


class Suspects:
    """Who is left out of a run's sums, by slot.

    What is found is as good as the sums: a client that spoils some of them only, at the right
    times, can get an honest one left out.

    Attributes:
        caught: Left out from now on.
    """

    def __init__(self) -> None:
        self.caught: set[int] = set()
        self._suspects: set[int] = set()
        self._close: set[int] = set()  # suspects of which at least one spoiled the last sum
        self._turn = 0  # others are tried each time, as a round may come to nothing

    def left_out(self, slots: Iterable[int], enough: Callable[[int], bool]) -> set[int]:
        """Return who does not take part in a round.

        Args:
            slots: Who was picked.
            enough: Whether a round of so many clients can be.
        """
        present = set(slots) - self.caught
        suspects = present & self._suspects
        if not suspects:
            return set(self.caught)
        close, trusted = sorted(suspects & self._close or suspects), present - suspects
        # The last one is tried where all others are above suspicion, and until then does not help.
        tried = len(close) // 2 or int(enough(len(trusted) + 1))
        first, self._turn = self._turn * tried % len(close), self._turn + 1
        close = close[first:] + close[:first]
        part = trusted.union(close[:tried])
        for more in [*sorted(suspects.difference(close)), *close[tried:]]:
            if enough(len(part)):
                break
            part.add(more)
        return self.caught | present - part

    def catch(self, found: Mapping[int, str]) -> None:
        """Leave clients out from now on, and say why."""
        text = "client %s is left out of secure aggregation from now on: %s"
        for slot, why in sorted(found.items()):
            if slot not in self.caught:
                log(WARNING, text, slot, why)
        self.caught |= set(found)
        self._suspects -= self.caught
        self._close -= self.caught

    def summed(self, slots: Iterable[int], sound: bool) -> None:
        """Take note of whether the sum of some clients made sense."""
        part = set(slots) - self.caught
        if sound:
            self._suspects -= part
            self._close -= part
            return
        tried = part & self._suspects
        self._close = tried & self._close or tried
        if len(tried) == 1:
            why = "sums with it make no sense, and those of the others do"
            self.catch(dict.fromkeys(tried, why))
            return
        if not tried:
            self._suspects |= part
        log(
            WARNING,
            "at least one of the clients %s spoils secure sums; some of them are left out of the "
            "next rounds until it is found",
            sorted(tried or part),
        )

    def state(self) -> dict[str, Any]:
        """Return who is left out, and who is under suspicion."""
        sets = {"caught": self.caught, "suspects": self._suspects, "close": self._close}
        return {name: sorted(slots) for name, slots in sets.items()} | {"turn": self._turn}

    def restore(self, state: dict[str, Any]) -> None:
        """Leave out and suspect whom `state` said."""
        self.caught, self._suspects = set(state["caught"]), set(state["suspects"])
        self._close, self._turn = set(state["close"]), state["turn"]
