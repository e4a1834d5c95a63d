"""Tensors that are one tensor under several names, such as GPT-2's ``wte`` and ``lm_head``.

A ``state_dict`` lists a tied parameter once for each name. Pruned apart, the copies drift: loading
keeps one of them, so that the change of the other holds all of the drift, and 1/q multiplies it by
up to 1/(1-p) in every round. So what comes back with equal bits is sent once: the others are
``tied`` to it, and whoever reads the packet copies.

Which ones they are travels beside the packet as text, ``3-1.7-1``: the tensor in place 3 of the
layout equals the one in place 1, and so does the one in place 7.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.delta import Layout
from fl_darex.errors import PacketError, Reason

Arrays = Mapping[str, NDArray[Any]]

_SAMPLE = 64  # entries that are looked at before whole tensors are compared


def tied_groups(layout: Layout, arrays: Arrays) -> list[list[str]]:
    """Return the groups of floating-point tensors with equal bits, each in order of names.

    Next to nothing is read of tensors that have no equal. A tensor of one entry, or none, is never
    tied: numbers are equal by chance.

    Args:
        layout: What the tensors look like.
        arrays: The tensors.
    """
    alike: dict[Any, list[str]] = defaultdict(list)
    for spec in layout:
        if spec.role != "raw" and spec.numel > 1:
            array = arrays[spec.name]
            stride = max(1, spec.numel // _SAMPLE)
            sample = np.ascontiguousarray(array.flat[::stride]).tobytes()
            alike[spec.shape, spec.dtype, array.dtype, sample].append(spec.name)
    groups: list[list[str]] = []
    for names in alike.values():
        while len(names) > 1:
            equal = [name for name in names if _same(arrays[names[0]], arrays[name])]
            if len(equal) > 1:
                groups.append(equal)
            names = [name for name in names if name not in equal]
    return sorted(groups)


def tie(layout: Layout, after: Arrays, before: Arrays) -> Layout:
    """Return a layout in which tensors that changed to equal bits are one.

    One that is sent whole stands for the others, or else the one that changed least: where they
    arrived different, that is the one that was trained. Tensors that did not change stay apart, so
    that equal but frozen ones change nothing.

    Args:
        layout: What becomes of each tensor otherwise.
        after: The tensors after a change.
        before: The tensors before it.
    """
    whole = {spec.name for spec in layout.dense}
    sources: dict[str, str] = {}
    for group in tied_groups(layout, after):
        if all(np.array_equal(after[name], before[name]) for name in group):
            continue
        able = [name for name in group if name in whole] or group
        apart = not all(np.array_equal(before[group[0]], before[name]) for name in group)
        first = (
            min(able, key=lambda name: _distance(after[name], before[name])) if apart else able[0]
        )
        sources |= {name: first for name in group if name != first}
    return layout.tie(sources)


def write_ties(layout: Layout) -> str:
    """Return which tensors of a layout are tied, as text; empty: none."""
    places = {spec.name: place for place, spec in enumerate(layout)}
    return ".".join(f"{places[spec.name]}-{places[spec.source]}" for spec in layout.tied)


def read_ties(layout: Layout, text: str) -> Layout:
    """Return a layout with the ties that a text from a stranger names.

    Raises:
        PacketError: If it is no text that `write_ties` writes for tensors that can be equal.
    """
    if not text:
        return layout
    specs, sources = layout.specs, dict[str, str]()
    pairs = text.split(".", len(specs))
    for pair in pairs:
        alias, _, source = pair.partition("-")
        if not (_is_place(alias, len(specs)) and _is_place(source, len(specs))):
            _refuse(f"names {pair[:20]!r}, which are not two of {len(specs)} tensors")
        one, other = specs[int(alias)], specs[int(source)]
        if one.name == other.name or one.name in sources or one.role == "raw":
            _refuse(f"ties {one.name!r} twice, to itself, or although it holds whole numbers")
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            _refuse(f"ties {one.name!r} to {other.name!r}, which has another shape or type")
        sources[one.name] = other.name
    if chained := sorted(set(sources) & set(sources.values())):
        _refuse(f"ties a tensor to {chained[0]!r}, which is tied itself")
    return layout.tie(sources)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).sum(dtype=np.float64))


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Return whether two arrays of one shape and type have the same bits."""
    kind = f"u{one.dtype.itemsize}"
    if kind not in ("u1", "u2", "u4", "u8"):  # a long double has bits that mean nothing
        return bool(np.array_equal(one, other))
    return bool(np.array_equal(np.asarray(one).view(kind), np.asarray(other).view(kind)))


def _is_place(text: str, count: int) -> bool:
    return len(text) < 10 and text.isascii() and text.isdigit() and int(text) < count


def _refuse(what: str) -> None:
    raise PacketError(f"what comes with the packet {what}", Reason.LAYOUT)
