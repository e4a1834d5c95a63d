"""Taking the masks out of a sum, with the shares that the clients who stayed hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg import keys
from fl_darex.secagg.graph import Graph
from fl_darex.secagg.masks import pair_mask, self_mask
from fl_darex.secagg.shares import combine
from fl_darex.secagg.vector import Vector


@dataclass
class Members:
    """What a server knows of the clients of a round, by slot; none of it is secret.

    Attributes:
        session: The round's 16 bytes.
        public: The two public keys of each: for letters, then for masks.
        graph: Who shares masks and secrets with whom.
        threshold: Shares that give a secret.
        commitments: What fixes the seed of each one's own mask.
        masked: Who may have masked with whom: the clients whose shares went around.
    """

    session: bytes
    public: dict[int, bytes] = field(default_factory=dict)
    graph: Graph = field(default_factory=dict)
    threshold: int = 2
    commitments: dict[int, bytes] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)

    def holders(self, slot: int) -> list[int]:
        """Return who got shares of a client's secrets, in the order of share numbers."""
        return sorted([slot, *self.graph[slot]])

    def near(self, slot: int) -> list[int]:
        """Return whose shares a client holds, its own among them, rising."""
        return sorted([slot, *self.masked.intersection(self.graph[slot])])

    def mask_key(self, slot: int) -> bytes:
        """Return the public key with which a client makes masks."""
        return self.public[slot][keys.PUBLIC_BYTES :]


def remove_masks(
    total: Vector, members: Members, alive: Set[int], given: Mapping[int, Mapping[int, bytes]]
) -> None:
    """Take all masks out of the sum of the vectors of ``alive``, in place.

    Args:
        total: The sum of their masked vectors.
        members: The round's clients.
        alive: Those whose vectors are in the sum.
        given: For each client that answered, its share of each of `Members.near`: of the seed of
            the own mask if that one is alive, else of the key of its masks.

    Raises:
        PacketError: If too few right shares of a secret came.
    """
    for slot in sorted(members.masked):
        held = {
            number: given[holder][slot]
            for number, holder in enumerate(members.holders(slot))
            if slot in given.get(holder, {})
        }
        if slot in alive:
            _remove_own(total, members, slot, held)
        else:
            _remove_shared(total, members, slot, held, alive)


def _remove_own(total: Vector, members: Members, slot: int, held: Mapping[int, bytes]) -> None:
    fixed = members.commitments[slot]
    seed = _rebuilt(
        members, slot, held, lambda found: keys.commitment(found, members.session) == fixed
    )
    shape = total.shape
    total.subtract(shape.read(self_mask(seed, members.session, slot, shape.size)))


def _remove_shared(
    total: Vector, members: Members, slot: int, held: Mapping[int, bytes], alive: Set[int]
) -> None:
    """Remove what neighbours added for a client whose vector never came."""
    peers = sorted(set(members.graph[slot]) & alive)
    if not peers:
        return
    own, shape = members.mask_key(slot), total.shape
    secret = _rebuilt(members, slot, held, lambda found: keys.public_key(found) == own)
    for peer in peers:
        public = members.mask_key(peer)
        mask = shape.read(pair_mask(secret, public, members.session, slot, peer, shape.size))
        if peer < slot:  # the lower one added it
            total.subtract(mask)
        else:
            total.add(mask)


def _rebuilt(
    members: Members, slot: int, held: Mapping[int, bytes], right: Callable[[bytes], bool]
) -> bytes:
    found = combine(held, members.threshold, right)
    if found is None:
        raise PacketError(
            f"the masks of client {slot} cannot be removed: {len(held)} shares came, "
            f"{members.threshold} right ones are needed",
            Reason.REPLY,
        )
    return found
