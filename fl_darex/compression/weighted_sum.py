"""The weighted mean of many clients' updates, packed or whole.

Packets are added where they are (`fl_darex.compression.sparse_sum`); the result depends on the
order of the updates alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fl_darex.change import Array, Arrays, added, moved, shortened, steps, wide
from fl_darex.compression.rho import Norms, squared
from fl_darex.compression.sparse_sum import Share, add_sparse
from fl_darex.compression.update import Before, Update
from fl_darex.delta import Layout


@dataclass(frozen=True, eq=False)
class Part:
    """One client's part in a mean.

    Attributes:
        update: What it says.
        weight: Its share before normalisation, for example the number of examples.
        factor: What its change is multiplied by, at most 1; less where it was clipped.
    """

    update: Update
    weight: float
    factor: float = 1.0


class Mean(dict[str, Array]):
    """The tensors of a mean.

    Attributes:
        norms: How its packets lie to each other; None where their sum does not say it: q differs by
            tensor, or packets have different layouts.
    """

    norms: Norms | None = None


def weighted_mean(
    before: Before, layout: Layout, parts: Sequence[Part]
) -> tuple[Mean | None, list[Part]]:
    """Return the mean of what updates say the tensors should be.

    With whole tensors only, the result has the same bits as Flower's own FedAvg on them, in this
    order. A sparse update stands for ``before + survivors / q``.

    Args:
        before: The tensors that the clients were sent.
        layout: Their layout.
        parts: In the order in which they are added; the sum of their weights is above 0.

    Returns:
        The mean; or None and the parts that have more or fewer survivors than their masks keep,
        which comes to light when a mask is drawn.
    """
    total = sum(part.weight for part in parts)
    sparse = [part for part in parts if part.update.mask is not None]
    whole = [part for part in parts if part.update.mask is None]
    result, norms = _sum_of_whole(whole, total, before, layout), []
    for own, alike in _by_layout(sparse):
        share = sum(part.weight for part in alike) / total
        # Shares of these alone: their sum is a mean, whatever the others weigh.
        shares = [Share(part, part.weight / total / (share or 1.0)) for part in alike]
        after, found, odd = _sum_of_sparse(before, own, shares)
        if odd:
            return None, odd
        norms.append(found)
        for name, array in after.items() if share else ():
            if name in result:
                array = (result[name] + array * share).astype(array.dtype)
            elif share < 1.0:  # others follow
                array = (array * share).astype(array.dtype)
            result[name] = array
    result |= mean_counters(before, layout, parts)
    mean = Mean((name, result[name]) for name in before)
    mean.norms = norms[0] if len(norms) == 1 else None
    return mean, []


def mean_counters(before: Before, layout: Layout, parts: Sequence[Part]) -> Arrays:
    """Return the weighted mean of the tensors that are not floating point, as whole numbers."""
    total = sum(part.weight for part in parts)
    sums = {spec.name: np.zeros(spec.numel) for spec in layout.raw}
    for part in parts if sums else ():
        values = part.update.counters()
        for name in sums:
            sums[name] += steps(values[name], before[name]) * (part.weight / total)
    return {name: moved(before[name], change) for name, change in sums.items()}


def _by_layout(parts: Sequence[Part]) -> Iterable[tuple[Layout, list[Part]]]:
    """Group parts whose packets have the same tensors; clients may differ in what is tied."""
    groups: dict[bytes, tuple[Layout, list[Part]]] = {}
    for part in parts:
        own = part.update.layout
        groups.setdefault(own.fingerprint, (own, []))[1].append(part)
    return groups.values()


def _sum_of_sparse(
    before: Before, layout: Layout, shares: Sequence[Share]
) -> tuple[Arrays, Norms | None, list[Part]]:
    """Return the floating-point part of the mean of packets that have one layout.

    Returns:
        The tensors; how the packets lie to each other; and the parts that do not fit their masks:
        if there are any, no tensors.
    """
    kind = np.result_type(np.float32, *(before[spec.name].dtype for spec in layout.pruned))
    sums = np.empty(sum(spec.numel for spec in layout.pruned), dtype=kind)
    if odd := add_sparse(sums, layout, shares, clear=True):
        return {}, None, [one.part for one in odd]
    norms = _norms(sums, shares)  # now: the sums become the model
    after = _pruned_after(before, layout, sums) | _dense_after(before, layout, shares)
    return after | _tied_after(before, layout, shares, after), norms, []


def _norms(sums: Array, shares: Sequence[Share]) -> Norms | None:
    weights = tuple(one.weight for one in shares if one.weight is not None)
    if len(weights) < max(2, len(shares)):
        return None
    survivors = sum(one.part.update.count for one in shares) / len(shares)
    return Norms(weights, tuple(one.square for one in shares), squared(sums), survivors)


def _tied_after(before: Before, layout: Layout, shares: Sequence[Share], after: Arrays) -> Arrays:
    """Return the tensors that equal others: copies, unless clipping keeps them from getting there.

    A client that is clipped goes only part of the way, also of that from the alias to its source.
    """
    result: Arrays = {}
    factor = sum(one.share * one.part.factor for one in shares)
    clipped = any(one.part.factor != 1.0 for one in shares)
    for spec in layout.tied:
        alias, source = before[spec.name], before[spec.source]
        result[spec.name] = after[spec.source]
        if clipped and not np.array_equal(alias, source):
            gap = (alias - source.astype(wide(source.dtype))) * (1.0 - factor)
            result[spec.name] = added(after[spec.source], gap)
    return result


def _sum_of_whole(parts: list[Part], total: float, before: Before, layout: Layout) -> Arrays:
    """Return the whole tensors' part of the mean.

    It has the bits of Flower's aggregate_arrayrecords where all have the model's types. The widest
    type that came decides, never narrower than the model's, whoever answered first.
    """
    result: Arrays = {}
    counters = {spec.name for spec in layout.raw}
    for part in parts:
        for name, array in part.update.values(before).items():
            if name in counters:
                continue
            if part.factor != 1.0:
                array = shortened(array, before[name], part.factor)
            kind = np.result_type(array, before[name])
            term = array.astype(kind, copy=False) * (part.weight / total)
            if name not in result:
                result[name] = term
            elif np.can_cast(kind, result[name].dtype):
                result[name] += term
            else:
                result[name] = result[name] + term
    return result


def _pruned_after(before: Before, layout: Layout, sums: Array) -> Arrays:
    """Return the model plus the weighted sum, for all pruned tensors."""
    after: Arrays = {}
    start = 0
    for spec in layout.pruned:
        part: Array = sums[start : start + spec.numel].reshape(spec.shape)
        start += spec.numel
        if before[spec.name].dtype == sums.dtype:
            part += before[spec.name]  # in place: the accumulator becomes the model
            after[spec.name] = part
        else:
            after[spec.name] = added(before[spec.name], part)
    return after


def _dense_after(before: Before, layout: Layout, shares: Sequence[Share]) -> Arrays:
    changes = {
        spec.name: np.zeros(spec.numel, wide(before[spec.name].dtype)) for spec in layout.dense
    }
    for one in shares:
        for name, values in one.part.update.dense().items():
            changes[name] += values * changes[name].dtype.type(one.share * one.part.factor)
    return {name: added(before[name], change) for name, change in changes.items()}
