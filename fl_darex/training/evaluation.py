"""Evaluation of the session's model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fl_darex.training.loop import AUTOCAST
from fl_darex.training.session import Examples, Session


@torch.no_grad()
def evaluate(session: Session, examples: Examples, threads: int) -> dict[str, float]:
    """Return ``loss`` and the task's metrics of the session's model on examples.

    Args:
        session: Model and task.
        examples: What to predict, at least one.
        threads: torch threads to use.
    """
    config = session.config.train
    torch.set_num_threads(threads)
    session.model.train(False)
    # Texts of like length in one batch need little padding; metrics do not see the order.
    ordered = sorted(examples, key=_text_length)
    parts = []
    autocast = torch.autocast(
        session.device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32"
    )
    for start in range(0, len(ordered), config.eval_batch_size):
        batch = ordered[start : start + config.eval_batch_size]
        with autocast:
            parts.append(session.task.predict(session.model, batch))
    outputs, labels = (
        np.concatenate([getattr(p, k) for p in parts]) for k in ("outputs", "labels")
    )
    loss = sum(part.loss for part in parts) / sum(part.terms for part in parts)
    return {"loss": loss, **session.task.score(outputs, labels)}


def _text_length(example: dict[str, Any]) -> int:
    return sum(len(value) for value in example.values() if isinstance(value, str))
