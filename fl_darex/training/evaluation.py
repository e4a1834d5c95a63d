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
    logits, labels, loss = [], [], 0.0
    autocast = torch.autocast(
        session.device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32"
    )
    for start in range(0, len(ordered), config.eval_batch_size):
        batch = ordered[start : start + config.eval_batch_size]
        inputs = {k: v.to(session.device) for k, v in session.task.collate(batch).items()}
        with autocast:
            output = session.model(**inputs)
        loss += float(output.loss) * len(batch)
        logits.append(output.logits.float().cpu().numpy())
        labels.append(inputs["labels"].cpu().numpy())
    scores = session.task.score(np.concatenate(logits), np.concatenate(labels))
    return {"loss": loss / len(ordered), **scores}


def _text_length(example: dict[str, Any]) -> int:
    return sum(len(value) for value in example.values() if isinstance(value, str))
