"""What a client measures on its own examples after training: activations, and the best q."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import LayerInputs, layer_inputs
from fl_darex.delta import Delta
from fl_darex.rescaling import OutputChange, RescaledModel, Validation, search_eta, search_q
from fl_darex.rescaling.rules import LABELLED, PER_LAYER
from fl_darex.rescaling.search import Method, Objective
from fl_darex.survivors import Q, Survivors
from fl_darex.training.evaluation import evaluate
from fl_darex.training.session import Examples, Session
from fl_darex.training.state import to_numpy

_ETA, _ETAS = 2.0**-12, 13
"""The first eta and how many: from 1/4096 to 1, each twice the one before. On digits at
p = .999 the best lies near 0.004; the first of the paper's grid, 0.1, makes q 18 times as large."""


def batches(
    session: Session, examples: Examples, *, labelled: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs of the session's model, on its device.

    Args:
        session: Model and task.
        examples: What to put into batches of ``train.eval-batch-size``.
        labelled: Whether ``labels`` are among them.
    """
    size = session.config.train.eval_batch_size
    for start in range(0, len(examples), size):
        batch: dict[str, Any] = session.task.inputs(examples[start : start + size])
        if not labelled:
            batch.pop("labels", None)
        yield {name: tensor.to(session.device) for name, tensor in batch.items()}


def input_norms(session: Session, partition: int) -> dict[str, NDArray[np.float64]]:
    """Return the norm of each linear layer's inputs, which WANDA weighs changes by.

    Args:
        session: The model as it is now, and the client's examples; labels are not looked at.
        partition: The client.
    """
    torch.set_num_threads(session.config.train.threads)
    found = layer_inputs(
        session.model, batches(session, session.calibration(partition), labelled=False)
    )
    return {name: inputs.norm for name, inputs in found.items() if name in session.tensors}


def choose_q(
    session: Session,
    partition: int,
    survivors: Survivors,
    base: Mapping[str, NDArray[Any]],
    rule: str,
) -> Q:
    """Return the q by which a client's survivors do best on its own examples.

    Args:
        session: The model as it was trained; it holds the same values afterwards.
        partition: The client; ``q-v`` looks at labelled examples that it has not trained on,
            ``q-e`` at inputs alone.
        survivors: What is left of its change.
        base: The model before training.
        rule: A row of `fl_darex.rescaling.rules.RULES`.
    """
    config = session.config
    torch.set_num_threads(config.train.threads)
    examples = session.calibration(partition)
    objective: Objective
    if rule in LABELLED:
        objective = Validation(
            lambda: evaluate(session, examples, config.train.threads)[session.task.metric_name]
        )
    else:
        objective = OutputChange(session.model, batches(session, examples, labelled=False))
    inputs: Mapping[str, LayerInputs] = {}
    trained: Mapping[str, NDArray[Any]] = {}
    if rule in PER_LAYER:
        inputs = layer_inputs(session.model, batches(session, examples, labelled=False))
        trained = to_numpy(session.tensors)  # the model itself is moved
    with RescaledModel(session.tensors, survivors, base) as rescaled:
        # The change of outputs has one minimum; a metric need not.
        method: Method = "grid" if rule in LABELLED else "golden"
        if rule in PER_LAYER:
            return search_eta(
                rescaled,
                objective,
                Delta(trained, base, session.dense),
                inputs,
                config.compress.p,
                step=_ETA,
                rounds=_ETAS,
                spacing="log",
                method=method,
            ).q
        return search_q(rescaled, objective, p=config.compress.p, method=method).q
