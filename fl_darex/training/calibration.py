"""What a client measures on its own examples after training: activations, and the best q."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import evaluating, layer_inputs
from fl_darex.delta import Delta
from fl_darex.rescaling import (
    EtaSearch,
    OutputChange,
    QSearch,
    RescaledModel,
    Validation,
    curvature_q,
    search_eta,
    search_q,
)
from fl_darex.rescaling.rules import CURVATURE, LABELLED, PER_LAYER
from fl_darex.rescaling.search import Method, Objective, lowest_q
from fl_darex.survivors import Q, Survivors
from fl_darex.training.evaluation import evaluate, in_batches
from fl_darex.training.exchange import to_numpy
from fl_darex.training.loop import FP16_SCALE, autocast, on_device
from fl_darex.training.session import Examples, Session
from fl_darex.wire.codings import nature_of

_ETA, _ETAS = 2.0**-12, 13
"""The first eta and how many: from 1/4096 to 1, each twice the one before. On digits at
p = .999 the best lies near 0.004; the first of the paper's grid, 0.1, makes q 18 times as large."""

_PARTS = 32
"""Batches for the curvature: small ones, or their mean hides what single gradients are like."""


def input_norms(session: Session, partition: int) -> dict[str, NDArray[np.float64]]:
    """Return the norm of each linear layer's inputs, which WANDA weighs changes by.

    Args:
        session: The model as it is now, and the client's examples; labels are not looked at.
        partition: The client.
    """
    torch.set_num_threads(session.config.train.threads)
    found = layer_inputs(session.model, batches(session, session.calibration(partition)))
    return {name: inputs.norm for name, inputs in found.items() if name in session.tensors}


def choose_q(
    session: Session,
    partition: int,
    survivors: Survivors,
    base: Mapping[str, NDArray[Any]],
    rule: str,
    clients: int | None = None,
) -> Q:
    """Return the q by which a client's survivors do best on its own examples.

    Args:
        session: The model as it was trained; it holds the same values afterwards.
        partition: The client; ``q-v`` looks at labelled examples that it has not trained on,
            ``q-e`` at inputs alone, ``curvature`` at labelled ones that it may have trained on.
        survivors: What is left of its change.
        base: The model before training.
        rule: A row of `fl_darex.rescaling.rules.RULES`.
        clients: Clients of a round; None: as the session's configuration says.
    """
    config = session.config
    torch.set_num_threads(config.train.threads)
    examples = session.calibration(partition)
    if rule == CURVATURE:
        together = clients or config.federation.sample_size
        return _by_curvature(session, examples, survivors, base, together)
    objective: Objective = Validation(
        lambda: evaluate(session, examples, config.train.threads)[session.task.metric_name]
    )
    method: Method = "grid"
    if rule not in LABELLED:
        objective = OutputChange(session.model, batches(session, examples))
        method = "golden"  # the change of outputs has one minimum; a metric need not
    search: Callable[..., QSearch | EtaSearch] = partial(search_q, p=config.compress.p)
    if rule in PER_LAYER and survivors.layout.pruned:  # else all tensors are sent whole
        search = partial(
            search_eta,
            # A copy of the trained values: the model itself is moved.
            delta=Delta(to_numpy(session.tensors), base, layout=survivors.layout),
            inputs=layer_inputs(session.model, batches(session, examples)),
            p=config.compress.p,
            step=_ETA,
            rounds=_ETAS,
            spacing="log",
        )
    with RescaledModel(session.tensors, survivors, base) as rescaled:
        return search(rescaled, objective, method=method).q


def _by_curvature(
    session: Session,
    examples: Examples,
    survivors: Survivors,
    base: Mapping[str, NDArray[Any]],
    clients: int,
) -> Q:
    """Return q for each pruned tensor, by the gradients of the training's loss."""
    compress, layout = session.config.compress, survivors.layout
    lowest = lowest_q(survivors, compress.p)
    if not layout.pruned:  # all tensors are sent whole
        return lowest
    # All other codings round far below the noise of dropping.
    nmse = nature_of(compress.values).nmse
    with evaluating(session.model):
        found = curvature_q(
            session.tensors,
            Delta(session.tensors, base, layout=layout, dtype=survivors.numbers.dtype),
            _losses(session, examples),
            compress.p,
            clients=clients,
            shared=compress.mask == "round",
            nmse=nmse,
        )
    if compress.scale == "least-squares":  # packets are that much shorter already
        found = np.maximum(found / np.float32(1.0 + nmse), np.float32(lowest))
    return found


def _losses(session: Session, examples: Examples) -> Iterator[torch.Tensor]:
    """Yield the loss of a few examples after a few others; only the ratio of gradients counts."""
    factor = FP16_SCALE if session.config.train.precision == "fp16" else 1.0
    size = math.ceil(len(examples) / _PARTS)
    for start in range(0, len(examples), size):
        inputs = on_device(session, session.task.inputs(examples[start : start + size]))
        with autocast(session):
            loss: torch.Tensor = session.model(**inputs).loss
        yield loss * factor


def batches(session: Session, examples: Examples) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs of the session's model without labels, on its device."""
    for some in in_batches(session, examples):
        inputs = session.task.inputs(some)
        yield on_device(session, {k: v for k, v in inputs.items() if k != "labels"})
