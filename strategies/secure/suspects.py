"""Clients that are left out of secure aggregation, and the search for one that spoils sums.

A client that breaks the protocol for all to see is left out from then on. One that sends random
numbers in place of its masked update is not seen: the sum makes no sense, and nobody can say whose
fault it is. It is found by halves: part of the suspects is left out of the next rounds, and whether
their sums make sense tells where it is. It is left out once a sum with it failed, all other clients
in it being above suspicion, and one without it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import WARNING
from typing import Any

from flwr.common.logger import log


class Suspects:
    """Who is left out of a run's sums, by slot.

    A client that spoils some of its sums only can get others left out for some rounds, or for
    good: what is found here is as good as the sums, and no sum of fewer clients is ever opened.

    Attributes:
        caught: Left out from now on.
    """

    def __init__(self) -> None:
        self.caught: set[int] = set()
        self._suspects: set[int] = set()
        self._spoiled = self._clean = False  # a sum with, one without the only suspect

    def left_out(self, slots: Iterable[int], enough: Callable[[int], bool]) -> set[int]:
        """Return who does not take part in a round.

        Args:
            slots: Who was picked.
            enough: Whether a round of so many clients can be.
        """
        present = sorted(set(slots) - self.caught)
        suspects = [slot for slot in present if slot in self._suspects]
        out = len(suspects) // 2 if len(self._suspects) > 1 else int(self._spoiled)
        while out and not enough(len(present) - out):
            out -= 1
        return self.caught | set(suspects[len(suspects) - out :])

    def catch(self, found: Mapping[int, str]) -> None:
        """Leave clients out from now on, and say why."""
        for slot, why in sorted(found.items()):
            if slot not in self.caught:
                log(
                    WARNING,
                    "client %s is left out of secure aggregation from now on: %s",
                    slot,
                    why,
                )
        self.caught |= set(found)
        self._suspects -= self.caught

    def summed(self, slots: Iterable[int], sound: bool) -> None:
        """Take note of whether the sum of some clients made sense."""
        took_part, before = set(slots) - self.caught, self._suspects
        if sound:
            self._suspects = before - took_part
        else:
            self._suspects = before & took_part or took_part
            log(
                WARNING,
                "at least one of the clients %s spoils secure sums; some of them are left out of "
                "the next rounds until it is found",
                sorted(self._suspects),
            )
        if self._suspects != before:
            self._spoiled = self._clean = False
        only = self._suspects if len(self._suspects) == 1 else set()
        self._spoiled |= not sound and bool(only)
        self._clean |= sound and bool(only)
        if self._spoiled and self._clean:
            why = "sums with it make no sense, and those of the others do"
            self.catch(dict.fromkeys(only, why))
            self._spoiled = self._clean = False

    def state(self) -> dict[str, Any]:
        """Return who is left out, and who is under suspicion."""
        flags = [self._spoiled, self._clean]
        return {"caught": sorted(self.caught), "suspects": sorted(self._suspects), "flags": flags}

    def restore(self, state: dict[str, Any]) -> None:
        """Leave out and suspect whom `state` said."""
        self.caught, self._suspects = set(state["caught"]), set(state["suspects"])
        self._spoiled, self._clean = state["flags"]
