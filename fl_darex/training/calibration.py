"""What a client measures on its own examples after training: activations, and the best q."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import layer_inputs
from fl_darex.training.session import Examples, Session


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
