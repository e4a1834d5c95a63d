"""Evaluation examples that stay the same from run to run.

These choices do not depend on the run's seed: runs that differ in their seed alone are then
measured on the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.rescaling.rules import SERVER_VALIDATION
from fl_darex.seeds import derive

if TYPE_CHECKING:
    from datasets import Dataset


def hold_out(train: Dataset, examples: int) -> tuple[Dataset, Dataset]:
    """Take ``examples`` out of ``train``; return what remains, and them.

    Raises:
        ConfigError: If nothing would remain.
    """
    if examples >= len(train):
        raise ConfigError(
            f"task.holdout = {examples} leaves nothing of the {len(train)} training examples; "
            f"allowed: 0 to {len(train) - 1}"
        )
    order = _order(len(train), "holdout")
    return train.select(np.sort(order[examples:])), train.select(np.sort(order[:examples]))


def set_apart(parts: Sequence[Dataset], holdout: int) -> tuple[Dataset, Dataset]:
    """Return what is learned from and what is measured on.

    Args:
        parts: The training data and, where they are used, evaluation data.
        holdout: Examples to take out of the training data for evaluation instead; 0 = none.

    Raises:
        ConfigError: If nothing would remain.
    """
    if holdout:
        return hold_out(parts[0], holdout)
    return parts[0], parts[1] if len(parts) > 1 else parts[0].select([])


def take_validation(train: Dataset, config: RunConfig) -> tuple[Dataset, Dataset | None]:
    """Take the examples out of ``train`` by which the server chooses q, if it does.

    Raises:
        ConfigError: If nothing would remain.
    """
    if config.compress.q != SERVER_VALIDATION:
        return train, None
    examples = config.server.validation_examples
    if examples >= len(train):
        raise ConfigError(
            f"server.validation-examples = {examples} leaves nothing of the {len(train)} "
            f"training examples; allowed: 1 to {len(train) - 1}"
        )
    order = _order(len(train), "validation")
    return train.select(np.sort(order[examples:])), train.select(np.sort(order[:examples]))


def subsample(data: Dataset, examples: int, label: str) -> Dataset:
    """Return ``examples`` of the data at random, in their old order; 0 or too many mean all.

    Args:
        data: Any dataset.
        examples: How many to keep; a smaller number gives a subset of a larger one's.
        label: What the sample is for; different labels give independent samples.
    """
    if not 0 < examples < len(data):
        return data
    return data.select(np.sort(_order(len(data), label)[:examples]))


def _order(length: int, label: str) -> np.ndarray:
    return np.random.default_rng(derive(0, "task", label)).permutation(length)
