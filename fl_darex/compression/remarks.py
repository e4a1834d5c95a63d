"""What is worth a line about a model and what is asked of its clients, before they are asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from fl_darex.compression.update import Before
from fl_darex.delta import Layout
from fl_darex.masks import ONE
from fl_darex.ties import tied_groups
from fl_darex.wire.codings import nature_of

if TYPE_CHECKING:
    from fl_darex.compression.uplink import Uplink

_TOO_FEW = 64  # survivors of a whole model


def remarks(layout: Layout, uplink: Uplink, unseen: Before | None = None) -> list[str]:
    """Return what to say once of a model and an uplink; nothing where all is well.

    Args:
        layout: What becomes of each tensor.
        uplink: The settings behind it.
        unseen: The tensors, where secure aggregation adds up what becomes of them.
    """
    if not uplink.how.packs:
        return []
    rotated = unseen is None and nature_of(uplink.values).rotated
    found = [misfit(layout, uplink.values)] if unseen is None else []
    found += [drowned(layout, uplink.values)] if rotated else []
    if uplink.keep < ONE or rotated:  # else nothing is dropped or mixed
        found += [nameless(layout, uplink.dense)]
    if uplink.keep < ONE:
        found += [too_small(layout, uplink.keep)]
        found += [] if unseen is None else [tied_unseen(layout, unseen)]
    return [text for text in found if text]


def misfit(layout: Layout, values: str) -> str:
    """Return what to say where a packet's numbers and the model are of other types; empty: nothing.

    Args:
        layout: What becomes of each tensor.
        values: The coding: of those in float32 only the one that is chosen to lose nothing counts.
    """
    sent = (*layout.pruned, *layout.dense)
    wide = [spec.name for spec in sent if spec.dtype == "float64"]
    if values == "fp64" and sent and not wide:
        return "no tensor is float64: values 'fp64' says what 'fp32' says in half the bytes"
    if values != "fp32" or not wide:
        return ""
    more = f" and {len(wide) - 1} more are" if len(wide) > 1 else " is"
    return (
        f"{wide[0]!r}{more} float64, and changes travel in float32's steps: values 'fp64' keeps "
        "float64's, for twice the bytes"
    )


def drowned(layout: Layout, values: str) -> str:
    """Return what to say of running statistics beside EDEN's few bits; empty: there are none.

    Args:
        layout: What becomes of each tensor.
        values: The coding.
    """
    found = [spec.name for spec in layout.dense if spec.statistic]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"values {values!r} writes running statistics ({found[0]}{more}) in int8, in steps of the "
        "largest change of 256 side by side: small variances beside large ones are lost in that, "
        "above all in the first rounds; values 'int4' and 'int8' write them in fp16"
    )


def tied_unseen(layout: Layout, arrays: Before) -> str:
    """Return what to say of tensors that look like one where nobody sees who ties them.

    Args:
        layout: What becomes of each tensor.
        arrays: The tensors; constant ones are equal by chance.
    """
    groups = [group for group in tied_groups(layout, arrays) if np.ptp(arrays[group[0]]) > 0]
    if not groups:
        return ""
    more = f" (and {len(groups) - 1} more such groups)" if len(groups) > 1 else ""
    return (
        f"{' = '.join(groups[0])}{more}: the same numbers, so perhaps one tensor. Secure "
        "aggregation adds them up apart, and pruned apart they drift: let clients exchange one of "
        "them alone"
    )


def too_small(layout: Layout, keep: int) -> str:
    """Return what to say of a model that is too small for its p; empty: nothing.

    Args:
        layout: What becomes of each tensor.
        keep: Fraction kept in units of 2**-32.
    """
    pruned = sum(spec.numel for spec in layout.pruned)
    whole = sum(spec.numel for spec in layout.dense)
    p, left = f"p = {1 - keep / ONE:g}", pruned * keep / ONE
    if not pruned:
        return f"the model is too small for {p}: all its {whole:,} entries are sent whole"
    if left >= _TOO_FEW:
        return ""
    return (
        f"the model is too small for {p}: about {left:.3g} of {pruned:,} entries survive a round, "
        f"so that most wait for many ({whole:,} are sent whole); lower p, or raise dense_below"
    )


def nameless(layout: Layout, dense: Collection[str]) -> str:
    """Return what to say of tensors whose names are only numbers; empty: they have names.

    A list of arrays becomes such a model.

    Args:
        layout: What becomes of each tensor.
        dense: Those that were named to be sent whole: whoever does that knows the others.
    """
    pruned = [spec.name for spec in layout.pruned]
    if not pruned or dense or not all(spec.name.isdigit() for spec in layout):
        return ""
    return (
        f"the model's {len(layout.specs)} tensors have numbers for names, which do not tell "
        "BatchNorm's running statistics from weights: send them whole with dense=[...], such as "
        f"dense=[{max(pruned, key=int)!r}]"
    )
