"""Parameter groups: what AdamR takes, those of a model with fresh tensors, and their anchors."""

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


def check_group(group: dict[str, Any]) -> None:
    """Refuse what AdamR does not have; see its errors."""
    if not 0 <= group["delta_decay"] < float("inf"):
        raise ValueError(f"delta_decay must be finite and at least 0, got {group['delta_decay']}")
    if group["norm"] not in ("l2", "l1"):
        raise ValueError(f"norm must be 'l2' or 'l1', got {group['norm']!r}")
    for option in ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable"):
        if group[option]:
            raise ValueError(f"AdamR has no {option}, got {group[option]!r}; leave it out")
    for p in group["params"]:
        if not p.is_floating_point():
            raise TypeError(f"parameters must be real floating-point numbers, got {p.dtype}")
    if len(set(group["params"])) < len(group["params"]):
        raise ValueError("a parameter is twice in a group; list it once")


def model_groups(model: torch.nn.Module, fresh: Iterable[str]) -> list[dict[str, Any]]:
    """Return named groups of a model's trained parameters: those with an anchor, then the fresh.

    Args:
        model: Frozen parameters (``requires_grad=False``) are left out.
        fresh: Names of parameters, or of modules they lie in, that the base checkpoint lacks.

    Raises:
        ValueError: If nothing is trained, or a fresh name fits no trained parameter.
    """
    if isinstance(fresh, str):
        raise ValueError(f"fresh must be a list of names, got the text {fresh!r}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("the model has no parameter with requires_grad=True; nothing is trained")
    whole: list[tuple[str, torch.nn.Parameter]] = []
    for part in fresh:
        # Wrappers such as peft put names in front and in between; dots mark what is a name.
        found = [name for name in trained if f".{part}." in f".{name}."]
        if not found and not any(part in name for name, _ in whole):
            raise ValueError(f"fresh names no trained parameter: {part!r}{nearest(part, trained)}")
        whole += [(name, trained.pop(name)) for name in found]
    groups: list[dict[str, Any]] = [{"params": list(trained.items())}] if trained else []
    return [*groups, {"params": whole, "delta_decay": 0.0}] if whole else groups


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
