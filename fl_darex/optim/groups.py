"""Parameter groups: what AdamR takes, and the groups of a model with fresh tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fl_darex.errors import nearest


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
