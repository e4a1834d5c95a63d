"""What clients hold of the model, as far as the server can know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord

from fl_darex.flower.model_note import DIGESTS_KEY, HELD_KEY
from fl_darex.wire.json_notes import is_hex
from fl_darex.wire.versions import VERSION_BYTES

_MOST_LOST = 2  # a client that loses its model so often is sent the whole one from then on


class Holdings:
    """Versions and tensors by client; a stranger's word costs memory of what is asked for alone.

    Attributes:
        held: The version that each client was brought to.
        base: Digests of the model's tensors that a client has from the start.
        lost: How often a client did not hold what it should.
    """

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.base: dict[int, frozenset[bytes]] = {}
        self.lost: dict[int, int] = {}
        self._speaks: set[int] = set()  # clients that answered in our terms

    def heard(self, node: int, answer: ConfigRecord, digests: Iterable[bytes]) -> None:
        """Take note of a client's answer to the greeting.

        Args:
            node: The client.
            answer: What it says it holds.
            digests: Those of the model's tensors.
        """
        held, own, known = answer.get(HELD_KEY), answer.get(DIGESTS_KEY), set(digests)
        if held is None:
            return
        self._speaks.add(node)
        if is_hex(held, 2 * VERSION_BYTES):
            self.held[node] = bytes.fromhex(str(held))
        if isinstance(own, bytes) and known:
            parts = (own[at : at + VERSION_BYTES] for at in range(0, len(own), VERSION_BYTES))
            # Of what a stranger lists only tensors of the model are of use, or kept.
            self.base[node] = frozenset(part for part in parts if part in known)

    def spoke(self, node: int, version: bytes) -> None:
        """A client's packet said which version it was made from, so it holds that version."""
        self._speaks.add(node)
        self.holds(node, version)

    def holds(self, node: int, version: bytes) -> None:
        """A client was sent a version and has answered."""
        if node in self._speaks and self.lost.get(node, 0) < _MOST_LOST:
            self.held[node] = version

    def lacks(self, node: int) -> None:
        """A client does not hold what it should: nothing is assumed of it any more."""
        self.held.pop(node, None)
        self.base.pop(node, None)
        self.lost[node] = self.lost.get(node, 0) + 1

    def forget(self) -> None:
        """Assume nothing of anybody."""
        self.held.clear()
        self.base.clear()

    def state(self) -> dict[str, Any]:
        """Return what each client holds."""
        known = {"held": dict(self.held), "base": dict(self.base), "lost": dict(self.lost)}
        return known | {"speaks": set(self._speaks)}

    def restore(self, state: dict[str, Any]) -> None:
        """Know of clients what `state` said."""
        self.held, self.base, self.lost = state["held"], state["base"], state["lost"]
        self._speaks = state["speaks"]
