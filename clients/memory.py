"""What a client keeps for its method, in ``context.state``: it advances only when a reply counted.

A client cannot know whether its reply will count. It therefore keeps two states: the one from
before its last reply, and the one after it, which the next message's terms make valid (they name
the last round in which a reply of this client counted) or void. Simulations and SuperNodes keep
``context.state`` from message to message, each node its own.
"""

from __future__ import annotations

from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.common.logger import log

from fl_darex.compression.method import State
from fl_darex.flower.records import to_arrays, to_record

_VALID, _NEXT, _ROUNDS = "darex.state", "darex.state.next", "darex.state.rounds"


class Memory:
    """One client's memory.

    Args:
        state: Of the client's context; changed.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def recall(self, counted: int, client: int) -> State:
        """Return the state to go on from, and forget what did not count.

        Args:
            counted: The last round in which the server counted this client; 0: none.
            client: Its partition, for the log.
        """
        rounds = dict(self._state.config_records.get(_ROUNDS, {}))
        valid, latest = rounds.get("valid", 0), rounds.get("next", 0)
        if latest and latest == counted and _NEXT in self._state.array_records:
            self._state[_VALID] = self._state[_NEXT]
            valid = latest
        self._state.pop(_NEXT, None)
        if valid != counted:
            log(
                WARNING,
                "client %s: the server counted its reply of round %s, and what was kept then is "
                "not here; it begins with nothing kept",
                client,
                counted,
            )
            self._state.pop(_VALID, None)
            valid = counted
        self._state[_ROUNDS] = ConfigRecord({"valid": valid, "next": 0})
        return to_arrays(self._state.array_records.get(_VALID, ArrayRecord()))

    def keep(self, state: State, round_: int) -> None:
        """Keep a state until the next message says whether this round's reply counted."""
        self._state[_NEXT] = to_record(state)
        self._state.config_records[_ROUNDS]["next"] = round_
