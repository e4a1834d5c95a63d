"""The protocol of a downlink policy: which part of the server's step goes to the clients.

It mirrors a compression method: a step, what is asked, and what was kept back go in; a packet and
what is kept back now come out. A new policy is one file here and one row in the table, or an own
class anywhere: ``compress.downlink = "package.module:Class"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fl_darex.compression.method import State
from fl_darex.delta import Delta
from fl_darex.positions import Mask
from fl_darex.wire.reader import read_packet


@dataclass(frozen=True, kw_only=True)
class StepTerms:
    """What is known of the server's step in one round.

    Attributes:
        seed: The run's seed.
        round: The federated round, from 1.
        version: Version of the model that clients hold, 8 bytes; the packet names it.
        keep: Fraction to send in units of 2**-32, of policies that drop something.
        values: Name of the coding of numbers.
        masks: The masks of all updates that entered the step; None if something else did, too.
    """

    seed: int
    round: int
    version: bytes
    keep: int
    values: str
    masks: Sequence[Mask] | None


class DownlinkPolicy:
    """Sends the whole model to everybody, and asks nobody what it holds.

    Two models are told apart. The server's own is what its strategy makes; the one that clients
    hold is the one before plus the packets, rounded as they are, and the next round starts from it.
    What lies between the two, a policy may keep and send later.

    Attributes:
        name: By which it is chosen.
        versions: Whether clients are asked which model they hold, and sent what they lack.
    """

    name: ClassVar[str] = "dense"
    versions: ClassVar[bool] = False

    def pack(self, step: Delta, terms: StepTerms, state: State) -> tuple[bytes | None, State]:
        """Return the packet that leads from the model that clients hold to the next one.

        Args:
            step: From the model that clients hold to what the strategy made of it.
            terms: What is known of it.
            state: What this returned in the round before; it may be changed in place.

        Returns:
            The packet, or None: the whole model goes to everybody; and the new state.

        Raises:
            DeltaError: If the step holds numbers that cannot be sent; the whole model is sent then,
                and the state forgotten.
        """
        return None, {}


def not_delivered(whole: State, step: Delta, packet: bytes) -> State:
    """Return what was to be sent and is not in the model that clients hold: what is kept back.

    What counts as sent is by how much that model has moved, and not the numbers of the packet:
    added to a large entry, or to one in half precision, a small number is rounded.

    Args:
        whole: What was to be sent, flattened, by tensor; changed in place.
        step: From the model that clients held.
        packet: What was made of it.
    """
    sent = read_packet(packet, step.layout).survivors()
    for name, numbers in sent.values.items():
        positions = sent.positions[name]
        whole[name][positions] -= step.moved_by(name, numbers, positions)
    for name, numbers in sent.dense.items():
        whole[name] -= step.moved_by(name, numbers)
    return whole
