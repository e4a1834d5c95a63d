"""Which of the base's tensors each one of a fine-tuned model is a change of, and what it costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fl_darex.delta import Layout
from fl_darex.deltas.arithmetic import distance, equal, wider
from fl_darex.deltas.header import Row
from fl_darex.deltas.header_reader import MOST_ENTRIES
from fl_darex.deltas.settings import Pruning
from fl_darex.errors import ConfigError
from fl_darex.files.formats import TYPES, StoredTensor

Tensors = Mapping[str, StoredTensor]

_SAMPLE = 64  # entries that are looked at before whole tensors are compared


def matched(tuned: Tensors, base: Tensors, how: Pruning) -> tuple[list[Row], list[str]]:
    """Return a row for each tensor of a fine-tuned model, not yet in packets, and remarks.

    Tensors belong together that have one name, or names that differ by one prefix, such as
    ``bert.``, and one shape. Those without a counterpart are kept whole; those that did not change
    cost nothing; of those that are equal one stands for all.

    Args:
        tuned: The fine-tuned model's.
        base: The base's.
        how: Which tensors are kept whole.

    Raises:
        ConfigError: If a tensor is of a type that cannot be written.
    """
    for name, tensor in tuned.items():
        if tensor.dtype not in TYPES or tensor.numel > MOST_ENTRIES:
            raise ConfigError(
                f"{name!r} is of type {tensor.dtype} with {tensor.numel:,} entries; what can be "
                f"pruned is {', '.join(TYPES)}; convert it first"
            )
    names, prefix = counterparts(tuned, base)
    rows = [_row(name, tuned[name], names.get(name), base, how) for name in sorted(tuned)]
    rows = _tied(rows, tuned, base)
    return rows, [*_remarks(rows, base), *_rounded(rows, base), *filter(None, [prefix])]


def counterparts(tuned: Tensors, base: Tensors) -> tuple[dict[str, str], str]:
    """Return the base's name for names of the fine-tuned model, and a remark on a prefix."""
    found = {name: name for name in tuned if name in base and _alike(tuned[name], base[name])}
    pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    # Either side may have the prefix: a bare encoder, or one inside a classifier.
    for name in tuned.keys() - found.keys():
        for tail in _tails(name):
            if tail in base and tail not in found and _alike(tuned[name], base[tail]):
                pairs["FINETUNED", name.removesuffix(tail)][name] = tail
    for other in base.keys() - found.keys():
        for tail in _tails(other):
            if tail in tuned and tail not in found and _alike(tuned[tail], base[other]):
                pairs["BASE", other.removesuffix(tail)][tail] = other
    if not pairs:
        return found, ""
    (side, head), more = max(pairs.items(), key=lambda item: (len(item[1]), item[0]))
    remark = f"{len(more)} names begin with {head!r} in {side} alone; taken for the same tensors"
    return found | more, remark


def _row(name: str, tensor: StoredTensor, other: str | None, base: Tensors, how: Pruning) -> Row:
    (spec,) = Layout.of({name: tensor}, below=how.dense_below)
    role = "dense" if spec.role == "pruned" and how.whole(name) else spec.role
    row = Row(name=name, dtype=tensor.dtype, shape=tensor.shape, role=role, base=other)
    if other is not None and equal(tensor, base[other]):
        return replace(row, role="same")
    if role == "raw":
        return replace(row, base=None)
    return row if other is not None else replace(row, role="dense")


def _tied(rows: list[Row], tuned: Tensors, base: Tensors) -> list[Row]:
    """Let one of several equal tensors stand for all: one that costs nothing, or changed least."""
    alike: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row.role != "raw" and row.numel > 1 and "float" in row.dtype:
            step = max(1, row.numel // _SAMPLE)
            sample = tuned[row.name].entries_at(np.arange(0, row.numel, step))
            alike[row.shape, row.dtype, sample.tobytes()].append(row)
    sources: dict[str, str] = {}
    for group in alike.values():
        while len(group) > 1:
            first = group[0]
            same = [row for row in group if equal(tuned[row.name], tuned[first.name])]
            group = [row for row in group if row not in same]
            sources |= _sources(same, tuned, base)
    return [
        replace(row, role="tied", base=None, source=sources[row.name])
        if row.name in sources
        else row
        for row in rows
    ]


def _sources(same: list[Row], tuned: Tensors, base: Tensors) -> dict[str, str]:
    changed = [row for row in same if row.role != "same"]
    if not changed or len(same) == 1:
        return {}

    def cost(row: Row) -> tuple[int, float]:
        if row.role == "same":
            return 0, 0.0
        if row.base is None:
            return 2, 0.0
        return 1, distance(tuned[row.name], base[row.base])

    source = min(same, key=lambda row: (*cost(row), row.name))
    return {row.name: source.name for row in changed if row is not source}


def _remarks(rows: Iterable[Row], base: Tensors) -> list[str]:
    listed = list(rows)
    new = [row for row in listed if row.role == "dense" and row.base is None]
    entries, in_all = (sum(row.numel for row in some) for some in (new, listed))
    found = []
    if new and 2 * entries > in_all:
        found.append(
            f"{len(new)} of {len(listed)} tensors, {entries / in_all:.0%} of all entries, have no "
            f"counterpart in BASE and are kept whole, {new[0].name!r} among them; is it the "
            f"right base? Its first tensor is {min(base, default='none')!r}"
        )
    elif new:
        found.append(f"kept whole, as BASE lacks them: {_some([row.name for row in new])}")
    if all(row.role == "same" for row in listed):
        found.append("FINETUNED does not differ from BASE")
    return found


def _rounded(rows: Iterable[Row], base: Tensors) -> list[str]:
    """Return a remark where rounding is a part of what changed."""
    narrow = [
        row
        for row in rows
        if row.role == "pruned" and row.base and wider(base[row.base].dtype, row.dtype)
    ]
    if not narrow:
        return []
    first = narrow[0]
    return [
        f"{len(narrow)} tensors are of a coarser type than BASE's, {first.name!r} {first.dtype}: "
        "rounding is a part of their change, and 1/q multiplies it; save FINETUNED in BASE's type"
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _alike(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether one tensor can be a change of the other."""
    floats = "float" in one.dtype and "float" in other.dtype and other.dtype in TYPES
    return one.shape == other.shape and (floats or one.dtype == other.dtype)


def _tails(name: str) -> list[str]:
    """Return a name without its first part, and without its first two."""
    parts = name.split(".")
    return [".".join(parts[skipped:]) for skipped in (1, 2) if len(parts) > skipped]
