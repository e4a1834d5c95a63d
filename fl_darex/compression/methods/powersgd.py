"""PowerSGD's low rank: a matrix as the product of two thin ones, found by one power iteration.

Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", NeurIPS 2019, https://arxiv.org/abs/1905.13727, Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_darex.compression.feedback import Feedback
from fl_darex.compression.method import NOTHING, Local, State, with_left_over
from fl_darex.compression.products import Products, factored, rank_of
from fl_darex.compression.update import SparseUpdate, Update
from fl_darex.delta import Delta, Layout, TensorSpec
from fl_darex.masks import ONE, SHARED, mask_key, words
from fl_darex.options import Option
from fl_darex.positions import Mask
from fl_darex.pruning import draw
from fl_darex.wire.packet import open_packet
from fl_darex.wire.reader import read_packet

if TYPE_CHECKING:
    from fl_darex.compression.terms import Terms
    from fl_darex.compression.uplink import Uplink

_REST, _WARM = "left of ", "right of "  # in the names of what is kept
_NOTHING = 1e-12  # of a column: what is shorter once the others are taken out is round-off

Rows = NDArray[np.float64]


class PowerSgd(Feedback):
    """Sends P and Q of ``P Q^T``, of ``rank`` columns each, for change and residual.

    ``P = M Q``, made orthonormal; ``Q = M^T P``, from which the next round goes on. The paper
    averages P among all workers before it goes on, and then Q, so that the sum of all has that
    rank. Here each client has factors of its own and the server adds up their products: a round is
    one message each way. A tensor's first axis counts rows, all others columns; what has one axis,
    or would not be smaller, is sent entry by entry. The first Q is drawn evenly from -1 to 1 in
    place of a normal distribution, so that it is the same on every machine. Both factors are
    written as ``values`` says, and what that rounds away is fed back as well.
    """

    name: ClassVar[str] = "powersgd"
    options: ClassVar[Mapping[str, Option]] = {
        "rank": Option(default=2, low=1, high=4096, help="powersgd: rank of a matrix's change")
    }

    def check(self, uplink: Uplink) -> None:
        """Refuse to drop entries of factors."""
        if uplink.keep != ONE:
            raise ValueError(
                f"p = {1 - uplink.keep / ONE:g} drops entries, and with method = 'powersgd' the "
                "rank says how much is sent: set p = 0"
            )

    def mask(self, terms: Terms) -> Mask:
        """Return that a packet has all entries of its layout."""
        return terms.drawn

    def packet_layout(self, layout: Layout, uplink: Uplink) -> Layout:
        """Return the layout of factors."""
        return factored(layout, int(uplink.options["rank"]))

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes, State]:
        """Return the packet; what it does not deliver, and where the next iteration begins."""
        known, layout, kept = state or {}, delta.layout, State()
        rests = {k.removeprefix(_REST): v for k, v in known.items() if k.startswith(_REST)}
        whole = with_left_over(delta, rests)
        sent: dict[str, Any] = {spec.name: delta.raw(spec.name) for spec in layout.raw} | whole
        for spec in layout.pruned:
            if rank := rank_of(spec, int(terms.uplink.options["rank"])):
                matrix = whole[spec.name].reshape(spec.shape[0], -1).astype(np.float64)
                warm = known.get(_WARM + spec.name)
                first = _first(spec, rank, terms) if warm is None else warm.reshape(rank, -1)
                left, right = _iterated(matrix, first.astype(np.float64))
                sent |= {f"{spec.name}|left": left, f"{spec.name}|right": right}
                # A direction in which nothing changed is looked at again.
                again = np.where(right.any(axis=1, keepdims=True), right, first)
                kept[_WARM + spec.name] = again.astype(delta.dtype).reshape(-1)
        inside = self.packet_layout(layout, terms.uplink)
        survivors = draw(Delta(sent, layout=inside, dtype=delta.dtype), terms.drawn)
        packet = self.encoded(survivors, terms, local)
        read = read_packet(packet, inside).survivors()
        delivered = Products(layout, read.values)
        for spec in layout.pruned:
            whole[spec.name] -= delivered.of(spec)
        for name, numbers in read.dense.items():
            whole[name] -= numbers
        return packet, kept | {_REST + name: rest for name, rest in whole.items()}

    def open(self, packet: bytes, layout: Layout, terms: Terms) -> Update:
        """Return what factors say of the tensors that they are of."""
        uplink, mask = terms.uplink, self.mask(terms)
        known: Any = {"q": uplink.divisor, "values": uplink.values, "base": terms.version}
        opened = open_packet(packet, self.packet_layout(layout, uplink), mask, **known)
        read = opened.survivors()
        products = Products(layout, read.values)
        products.check(uplink.values)
        more: Any = {"mask": mask, "q": read.q, "count": products.count}
        return SparseUpdate(layout, products.numbers, lambda: read.dense, lambda: read.raw, **more)


def _first(spec: TensorSpec, rank: int, terms: Terms) -> Rows:
    """Return where the first iteration of a matrix begins, the same for all clients."""
    key = mask_key(terms.uplink.seed, 0, SHARED, f"{spec.name}|right")
    count = rank * (spec.numel // spec.shape[0])
    drawn = words(np.array([key], dtype=np.uint64), 0, count + count % 2)[:count]
    return (drawn / 2.0**31 - 1).reshape(rank, -1)


def _iterated(matrix: Rows, right: Rows) -> tuple[Rows, Rows]:
    """Return P, its columns orthonormal, and Q after a power iteration, their columns as rows.

    Without BLAS, whose threads would add up in another order on another machine.
    """
    left = _orthonormal(np.stack([np.einsum("ij,j->i", matrix, row) for row in right]))
    return left, np.stack([np.einsum("ij,i->j", matrix, row) for row in left])


def _orthonormal(rows: Rows) -> Rows:
    """Make rows orthonormal one after the other (Gram-Schmidt), in place; one in others is 0."""
    for place, row in enumerate(rows):
        before = np.sqrt(np.einsum("i,i->", row, row))
        for other in rows[:place]:
            row -= np.einsum("i,i->", other, row) * other
        length = np.sqrt(np.einsum("i,i->", row, row))
        if length > _NOTHING * before:
            row /= length
        else:
            row[:] = 0
    return rows
