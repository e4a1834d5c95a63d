"""Evaluation of the session's model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fl_darex.training.batches import text_length
from fl_darex.training.loop import autocast, on_device
from fl_darex.training.session import Examples, Session


@torch.no_grad()
def evaluate(session: Session, examples: Examples, threads: int) -> dict[str, float]:
    """Return ``loss`` and the task's metrics of the session's model on examples.

    Args:
        session: Model and task.
        examples: What to predict, at least one.
        threads: torch threads to use.
    """
    parts = []
    for batch in _by_length(session, examples, threads):
        with autocast(session):
            parts.append(session.task.predict(session.model, batch))
    outputs, labels = (
        np.concatenate([getattr(p, k) for p in parts]) for k in ("outputs", "labels")
    )
    loss = sum(part.loss for part in parts) / sum(part.terms for part in parts)
    return {"loss": loss, **session.task.score(outputs, labels)}


@torch.no_grad()
def mean_loss(session: Session, examples: Examples, threads: int) -> float:
    """Return the ``loss`` of `evaluate` alone: no metric is computed, no text generated."""
    total, terms = 0.0, 0
    for batch in _by_length(session, examples, threads):
        inputs = on_device(session, session.task.inputs(batch))
        count = session.task.loss_terms(inputs)
        with autocast(session):
            total += float(session.model(**inputs).loss) * count
        terms += count
    return total / terms


def in_batches(session: Session, examples: Examples) -> Iterator[Examples]:
    """Yield the examples in batches of ``train.eval-batch-size``."""
    size = session.config.train.eval_batch_size
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _by_length(session: Session, examples: Examples, threads: int) -> Iterator[Examples]:
    torch.set_num_threads(threads)
    session.model.train(False)
    # Texts of like length in one batch need little padding; metrics do not see the order.
    return in_batches(session, sorted(examples, key=text_length))
