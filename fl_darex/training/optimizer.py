"""The optimizer of one client's round: what it trains, how fast, and what is pulled back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fl_darex.optim import AdamR
from fl_darex.training.masked import MaskedParameters
from fl_darex.training.session import Session


def in_turn(session: Session) -> dict[str, Tensor]:
    """Return what is trained now, by name: all, but what the session's adapter lets rest."""
    return {name: tensor for name, tensor in session.trained.items() if tensor.requires_grad}


def make_optimizer(
    session: Session, masked: MaskedParameters | None = None, whole: Iterable[str] | None = None
) -> torch.optim.Optimizer:
    """Return a fresh optimizer for the model's trained parameters.

    AdamR does not pull a fresh head: it has no base worth staying near. Tensors that are sent whole
    have a learning rate of their own by ``train.dense-lr``.

    Args:
        session: The model and the configuration.
        masked: What is trained in place of the model's parameters; None: these themselves.
        whole: Names of the tensors that are sent whole; None: as the configuration says.
    """
    config = session.config.train
    masked = masked or MaskedParameters(in_turn(session), None)
    apart: set[str] = set()
    if config.dense_lr != "same":
        apart = set(session.whole if whole is None else whole)
    adamr = config.optimizer == "adamr"
    fresh = [name for name in session.dense if name in masked.trained]
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name in [*(name for name in masked.trained if name not in fresh), *fresh]:
        kind = adamr and name in fresh, name in apart
        if kind not in groups:
            groups[kind] = {"params": [], "lr": config.dense_lr if name in apart else config.lr}
            groups[kind] |= {"delta_decay": 0.0 if kind[0] else config.delta_decay} if adamr else {}
        groups[kind]["params"].append((name, masked.trained[name]))
    rows = list(groups.values())
    if not adamr:
        return torch.optim.AdamW(rows, config.lr, weight_decay=config.weight_decay, fused=True)
    anchor = None
    if config.anchor == "pretrained":
        first = session.pretrained
        anchor = {name: masked.kept_of(name, first[name]) for name in masked.trained}
    return AdamR(rows, lr=config.lr, norm=config.norm, anchor=anchor)
