"""What the tests of published methods have in common: a client that answers round after round."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_darex.compression import METHODS, State, Terms, Uplink
from fl_darex.compression.update import Update
from fl_darex.delta import Delta

SHAPES = {"a.weight": (8, 9), "b.bias": (11,), "c.weight": (5, 4, 3), "d": (40,)}
BEFORE = {name: np.zeros(shape) for name, shape in SHAPES.items()}

NEEDS: dict[str, dict[str, Any]] = {
    "stc": {"values": "sign"},
    "signsgd": {"p": 0.0, "values": "sign"},
    "powersgd": {"p": 0.0},
}
"""Without which a method is refused."""

Changes = dict[str, np.ndarray]


def change(client: int, round_: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Changes:
    """What a client's training changed in a round, in float64."""
    rng = np.random.default_rng([7, client, round_])
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


class Client:
    """One client of a method, and the server that opens its packets; numbers are exact in fp64."""

    def __init__(self, method: str, p: float = 0.9, slot: int = 0, **asked: Any) -> None:
        options = asked.pop("options", {})
        given: dict[str, Any] = {"values": "fp64", "seed": 3} | asked
        self.uplink = Uplink.of(method, p, options=options, **given)
        self.slot, self.state = slot, State()
        self.packet = b""

    def terms(self, round_: int) -> Terms:
        return Terms(self.uplink, round_, self.slot)

    def opened(self, changes: Changes, round_: int, before: Changes | None = None) -> Update:
        """Answer a round; return what the server makes of it."""
        before = before or {name: np.zeros_like(array) for name, array in changes.items()}
        after = {name: before[name] + array for name, array in changes.items()}
        layout = self.uplink.fitted(before).layout(before)
        delta = Delta(after, before, layout=layout, dtype=self.uplink.dtype)
        terms = self.terms(round_)
        packet, self.state = METHODS[self.uplink.method].compress(delta, terms, state=self.state)
        assert packet is not None
        self.packet = packet
        return self.uplink.how.open(packet, layout, terms)

    def sent(self, changes: Changes, round_: int) -> Changes:
        """Answer a round; return by how much the server's model moves if it is the only client."""
        zeros = {name: np.zeros_like(array) for name, array in changes.items()}
        return self.opened(changes, round_).values(zeros)


def assert_near(found: Changes, expected: Changes, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance, err_msg=name)
