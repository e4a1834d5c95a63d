"""Anchors: the point that each parameter is pulled to, and what makes it recognisable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fl_darex.errors import AnchorError, nearest


@dataclass(slots=True)
class Track:
    """What is kept for one parameter besides Adam's own state."""

    anchor: Tensor
    steps: int = 0
    square_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


def resolve(
    groups: list[dict[str, Any]], given: Iterable[Tensor] | Mapping[str, Tensor] | None
) -> dict[Tensor, Track]:
    """Pair every parameter of the groups with a copy of its anchor."""
    params = [p for group in groups for p in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    free = {n for g in groups if g["delta_decay"] == 0 for n in g.get("param_names", ())}
    if isinstance(given, Mapping):
        if not names:
            raise AnchorError("an anchor by name needs named parameters: model.named_parameters()")
        for name in names:
            if name not in given and name not in free:
                raise AnchorError(f"the anchor lacks {name!r}{nearest(name, given)}")
        given = [given.get(name, p) for name, p in zip(names, params, strict=True)]
    if isinstance(given, Tensor) or not isinstance(given, Iterable | None):
        raise TypeError(f"anchor must be tensors or a mapping, got {type(given).__name__}")
    anchors = params if given is None else list(given)
    if len(anchors) != len(params):
        raise AnchorError(f"the anchor has {len(anchors)} tensors for {len(params)} parameters")
    for name, p, anchor in zip(names or range(len(params)), params, anchors, strict=True):
        if not isinstance(anchor, Tensor) or not anchor.is_floating_point():
            raise TypeError(f"the anchor of parameter {name!r} must be a floating-point tensor")
        if anchor.shape != p.shape:
            raise AnchorError(f"anchor {name!r} has shape {[*anchor.shape]}, not {[*p.shape]}")
    return {p: Track(a.detach().clone()) for p, a in zip(params, anchors, strict=True)}


def fingerprint(tracks: Iterable[Track]) -> str:
    """Return 32 hexadecimal digits that differ between any two lists of anchors."""
    digest = hashlib.blake2b(digest_size=16)
    for anchor in (track.anchor.cpu() for track in tracks):
        digest.update(f"{anchor.dtype}{tuple(anchor.shape)};".encode())
        digest.update(anchor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
