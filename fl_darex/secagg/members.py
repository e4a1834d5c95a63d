"""What a server knows of the clients of a round, and how their sum is rid of its masks.

Some of them may break the protocol. Wrong shares are passed over as long as enough right ones are
left; who gave them is found out where it can be, and not by anybody's word alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from fl_darex.errors import PacketError, Reason
from fl_darex.secagg import keys
from fl_darex.secagg.masks import Graph, add_shared, own_mask
from fl_darex.secagg.ring import Vector
from fl_darex.secagg.shares import Recovered, combine

Odd = set[tuple[int, int]]
"""Dealer and holder of shares that are wrong, or in letters that cannot be read."""


class Given(NamedTuple):
    """A client's answer to the stage ``unmask``.

    Attributes:
        shares: By the slot of their dealer: of the seed of its own mask if its vector is in the
            sum, else of the key of its masks.
        unread: Dealers whose letter it says it could not read.
    """

    shares: Mapping[int, bytes]
    unread: Set[int] = frozenset()


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
        caught: Who broke the protocol, and how; only where others cannot have made it up, unless
            more of them lie than ``threshold`` allows for.
    """

    session: bytes
    public: dict[int, bytes] = field(default_factory=dict)
    graph: Graph = field(default_factory=dict)
    threshold: int = 2
    commitments: dict[int, bytes] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)
    caught: dict[int, str] = field(default_factory=dict)

    def near(self, slot: int) -> list[int]:
        """Return whose shares a client holds, its own among them, rising."""
        return sorted([slot, *self.masked.intersection(self.graph[slot])])

    def mask_key(self, slot: int) -> bytes:
        """Return the public key with which a client makes masks."""
        return keys.halves(self.public[slot])[1]

    def unmask(self, total: Vector, alive: Set[int], given: Mapping[int, Given]) -> None:
        """Take all masks out of the sum of the vectors of ``alive``, in place.

        Args:
            total: The sum of their masked vectors.
            alive: Those whose vectors are in the sum.
            given: By client: its share of each of `near`.

        Raises:
            PacketError: If too few right shares of a secret came; the reason is ``VALUES`` where
                enough came, but wrong ones.
        """
        for slot, secret in self._secrets(alive, given).items():
            if slot in alive:
                total.subtract(own_mask(total.shape, secret, self.session, slot))
                continue
            for peer in sorted(alive & set(self.graph[slot])):
                add_shared(total, secret, self.mask_key(peer), self.session, slot, peer)

    def _secrets(self, alive: Set[int], given: Mapping[int, Given]) -> dict[int, bytes]:
        """Return, by slot, the seed of each own mask, or the key of masks that have no partner."""
        found, lost = dict[int, bytes](), dict[int, tuple[int, int]]()
        odd: Odd = {(dealer, one) for one, answer in given.items() for dealer in answer.unread}
        for slot in sorted(self.masked):
            lives = slot in alive
            if not lives and not alive & set(self.graph[slot]):
                continue  # nobody in the sum has a mask with it
            holders = sorted([slot, *self.graph[slot]])  # in the order of share numbers
            came = [one for one in holders if slot in given.get(one, Given({})).shares]
            read = [one for one in came if slot not in given[one].unread]
            held = {holders.index(one): given[one].shares[slot] for one in read}
            recovered = self._recovered(slot, lives, held)
            if recovered is None or not (recovered.sure or lives):
                lost[slot] = (len(came), len(read))
                if len(lost) > self._slack(slot):
                    break  # not the fault of single dealers
                continue
            if not recovered.sure:
                self.caught[slot] = "it committed itself to another seed than the one it shared"
            odd |= {(slot, holders[at]) for at in recovered.wrong}
            found[slot] = recovered.secret
        self._catch(odd, lost)
        return found

    def _recovered(self, slot: int, lives: bool, held: Mapping[int, bytes]) -> Recovered | None:
        """Return a client's secret, which shows itself as what is known of it."""
        shown = partial(keys.commitment, session=self.session) if lives else keys.public_key
        known = self.commitments[slot] if lives else self.mask_key(slot)
        return combine(held, self.threshold, lambda secret: shown(secret) == known)

    def _slack(self, slot: int) -> int:
        """Return how many of those that hold a client's shares may fail it at no cost; or 1."""
        # Of a single share nobody can tell whether it was dealt wrong or handed on wrong.
        return max(1, len(self.graph[slot]) + 1 - self.threshold)

    def _catch(self, odd: Odd, lost: Mapping[int, tuple[int, int]]) -> None:
        """Find out who broke the protocol, and give up where a secret is lost.

        A client is behind most of its odd shares if there are more than could be the others'
        doing. The one with the most is named first, and what it explains is not held against
        others.
        """
        while odd:
            times = Counter(who for pair in odd for who in set(pair))
            who, count = min(times.items(), key=lambda one: (-one[1], one[0]))
            if count <= self._slack(who):
                break
            self.caught[who] = f"{count} shares that it dealt or handed on cannot be used"
            odd = {pair for pair in odd if who not in pair}
        for slot, (_, read) in lost.items():
            holders = len(self.graph[slot]) + 1
            if read == holders > self.threshold and len(lost) <= self._slack(slot):
                self.caught[slot] = "the shares that it dealt give none of its secrets"
        for slot, (came, read) in lost.items():
            raise PacketError(
                f"the masks of client {slot} cannot be removed: {read} shares came, "
                f"{self.threshold} right ones are needed",
                Reason.REPLY if came < self.threshold else Reason.VALUES,
            )
