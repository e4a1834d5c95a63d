"""What clients leave from message to message: small with the driver, large where they ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import ray
from flwr.app import RecordDict
from ray import ObjectRef

from fl_darex.simulation.parcels import Parcel, pack, unpack

Boxed = list[ObjectRef[Any]]
"""One reference. In a list, Ray passes it on and does not resolve it for each call."""


@dataclass(frozen=True)
class Held:
    """Where a large state is: in the value of a reference, at a client's place."""

    box: Boxed
    place: int


State = Parcel | Held | None
"""What a client has left: packed, elsewhere, or nothing."""

UNCHANGED = "as before"
ASIDE = "in the second result"
LOST = "on a machine that is gone"
"""The client had no turn, because what it left is lost."""


def opened(state: Parcel | Held) -> Parcel:
    """Return a state, wherever it is.

    Raises:
        ObjectLostError: If it was on a machine that is gone.
    """
    if not isinstance(state, Held):
        return state
    found: Parcel = ray.get(state.box[0])[state.place]
    return found


class States:
    """The states of all clients, by node."""

    def __init__(self) -> None:
        self._left: dict[int, State] = {}

    def of(self, node: int) -> State:
        """Return what a client has left."""
        return self._left.get(node)

    def take(self, node: int, left: Parcel | str | None, aside: Held) -> None:
        """Take what a client leaves.

        Args:
            node: The client.
            left: The state, or one of the words above.
            aside: Where it is if the word says so.
        """
        if left == ASIDE:
            self._left[node] = aside
        elif left != UNCHANGED:
            self._left[node] = cast("Parcel | None", left)

    def lose(self, node: int) -> None:
        """Hear that what a client left is gone."""
        del self._left[node]

    def records(self) -> dict[int, RecordDict]:
        """Return those that there are.

        Raises:
            ObjectLostError: If one was on a machine that is gone.
        """
        left = {node: opened(state) for node, state in self._left.items() if state is not None}
        return {node: unpack(state) for node, state in left.items()}

    def replace(self, records: Mapping[int, RecordDict]) -> None:
        """Take states in place of all that there are."""
        self._left = {node: pack(state) for node, state in records.items()}
