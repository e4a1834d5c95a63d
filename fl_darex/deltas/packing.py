"""Which tensors share a packet, and what survives of them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fl_darex.delta import Delta, Layout
from fl_darex.deltas.header import Row
from fl_darex.deltas.settings import Pruning
from fl_darex.errors import ConfigError, DeltaError
from fl_darex.files.formats import StoredTensor
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, Positions, SeededMask, StructuredMask
from fl_darex.pruning import draw
from fl_darex.pruning.gather import gather
from fl_darex.pruning.largest import Cut, above, find_cut, largest
from fl_darex.pruning.magnitude import Magnitudes, magnitudes
from fl_darex.pruning.scores import keep_largest, kept_count
from fl_darex.pruning.structured import columns_kept, draw_structured
from fl_darex.pruning.wanda import weighted
from fl_darex.survivors import Survivors
from fl_darex.wire.codings import CODINGS, dense_coding, type_of

NUMBERS = 1 << 22
"""Of a packet, unless one tensor has more of them; some 25 bytes each are in memory at a time."""

Tensors = Mapping[str, StoredTensor]


def in_packets(rows: Iterable[Row], keep: int) -> list[Row]:
    """Return rows with the packets that they go into: pruned ones, then those that go whole.

    Args:
        rows: In order of names.
        keep: Keep threshold of pruned ones.
    """
    listed, number, room = list(rows), -1, 0
    places: dict[str, int] = {}
    for roles, share in ((("pruned",), keep), (("dense", "raw"), ONE)):
        room = 0
        for row in listed:
            if row.role in roles:
                size = max(1, row.numel * share // ONE)
                if size > room:
                    number, room = number + 1, NUMBERS
                places[row.name], room = number, room - size
    return [replace(row, packet=places.get(row.name, -1)) for row in listed]


@dataclass(frozen=True)
class Source:
    """What there is to prune.

    Attributes:
        tuned: The fine-tuned model's tensors.
        base: The base's.
        how: How they are pruned.
    """

    tuned: Tensors
    base: Tensors
    how: Pruning

    def delta(self, rows: Iterable[Row]) -> Delta:
        """Return the change of some tensors; one without a base is a change from zeros."""
        listed = list(rows)
        layout = Layout(tuple(row.spec for row in listed))
        before = {row.name: self._before(row) for row in listed}
        after = {row.name: self.tuned[row.name] for row in listed}
        return Delta(after, before, layout=layout, dtype=type_of(CODINGS[self.how.values]))

    def survivors(self, rows: list[Row]) -> Generator[Survivors]:
        """Yield what survives, packet by packet.

        Args:
            rows: In order of packets, and in each in order of names.
        """
        pruned = [row for row in rows if row.role == "pruned"]
        if self.how.method == "wanda" and pruned:
            if not any(row.name in (self.how.norms or {}) for row in pruned):
                raise ConfigError(
                    f"norms has none of the pruned tensors, such as {pruned[0].name!r}, so 'wanda' "
                    "would be 'magnitude'; give those of linear layers, or that method"
                )
        cut = self._cut(pruned) if self._cuts_all else None
        for number in dict.fromkeys(row.packet for row in rows):
            some = [row for row in rows if row.packet == number]
            delta = self.delta(some)
            if some[0].role != "pruned":
                mask = SeededMask(self.how.seed, 0, 0, ONE)
                yield gather(delta, mask, 1.0, {})
                continue
            if self._cuts_all:
                where, cut = above(_pieces(delta), cut)
                found = gather(delta, self._listed(where), 1.0)
            else:
                found = self._pruned(delta)
            divisors = self.how.divisors([row.name for row in some])
            q = np.array(divisors, np.float32) if isinstance(divisors, list) else divisors
            yield replace(found, q=q)

    def coding(self, rows: list[Row]) -> str:
        """Return how the numbers of a packet are written: those of whole tensors finer."""
        pruned = rows[0].role == "pruned"
        return self.how.values if pruned else dense_coding(self.how.values).name

    @property
    def _cuts_all(self) -> bool:
        return self.how.method == "magnitude" and self.how.scope == "global"

    def _pruned(self, delta: Delta) -> Survivors:
        how = self.how
        if how.method in ("dare", "structured"):
            mask = SeededMask(how.seed, 0, 0, how.keep, how.exact)
            if how.method == "dare":
                return draw(delta, mask)
            return draw_structured(delta, StructuredMask(mask, columns_kept(how.keep, how.columns)))
        if how.method == "magnitude" and how.scope == "layer":
            where: dict[str, Positions] = {}
            for name, piece in _pieces(delta).items():
                where |= largest({name: piece}, kept_count(piece.size, how.keep))
            return gather(delta, self._listed(where), 1.0)
        by_inputs = how.method == "wanda"
        score = weighted(delta, how.norms or {}, how.scope) if by_inputs else magnitudes(delta)
        return keep_largest(delta, how.keep, how.scope, score, self._listed({}))

    def _cut(self, rows: list[Row]) -> Cut | None:
        tensors = _pieces(self.delta(rows))
        return find_cut(tensors, kept_count(sum(row.numel for row in rows), self.how.keep))

    def _listed(self, where: Mapping[str, Positions]) -> ListedMask:
        return ListedMask(where, self.how.seed, 0, 0)

    def _before(self, row: Row) -> StoredTensor:
        if row.base is not None:
            return self.base[row.base]
        return StoredTensor(row.dtype, row.shape, lambda: np.zeros(row.shape, np.float32))


def _pieces(delta: Delta) -> dict[str, Magnitudes]:
    return {spec.name: Magnitudes(delta, spec) for spec in delta.layout.pruned}


def name_odd(delta: Delta) -> DeltaError | None:
    """Return the error of the first tensor that holds NaN or infinite changes; None: none does."""
    for spec in delta.layout:
        if spec.role == "raw":
            continue
        for start in range(0, spec.numel, NUMBERS):
            if not np.isfinite(delta.part(spec.name, start, start + NUMBERS)).all():
                return DeltaError(
                    f"{spec.name!r} holds NaN or infinite values, or ones that differ so much from "
                    "BASE's; a model like this cannot be pruned"
                )
    return None
