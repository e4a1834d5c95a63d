"""What is worth a line about a model and what is asked of its clients, before they are asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fl_darex.delta import Layout
from fl_darex.masks import ONE

if TYPE_CHECKING:
    from fl_darex.compression.uplink import Uplink

_TOO_FEW = 64  # survivors of a whole model


def remarks(layout: Layout, uplink: Uplink) -> list[str]:
    """Return what to say once of a model and an uplink; nothing where all is well.

    Args:
        layout: What becomes of each tensor.
        uplink: The settings behind it.
    """
    if not uplink.how.packs or uplink.keep == ONE:
        return []  # nothing is dropped
    return [
        text for text in (too_small(layout, uplink.keep), nameless(layout, uplink.dense)) if text
    ]


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
