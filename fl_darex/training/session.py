"""What a process keeps between messages: the task's data and one model."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.seeds import derive
from fl_darex.tasks import Task, load_task
from fl_darex.training.state import exchanged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Examples = list[dict[str, Any]]


class Session:
    """A task, one instance of its model, and the examples of clients as lists.

    Args:
        config: The run's configuration.

    Attributes:
        task: The task, data loaded.
        model: One model, on the device; its weights are whatever was written last.
        tensors: The model's exchanged tensors, by name.
        pretrained: Copies of their first values: the anchor of ``train.anchor = pretrained``.
        dense: Names of exchanged tensors that the base checkpoint lacks.
        device: Where the model is.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.task: Task = load_task(config)
        self.device = _device(config)
        self.model = self.task.load_model()
        if config.train.gradient_checkpointing:
            checkpoint_activations(self.model)
        self.model.to(self.device)  # type: ignore[arg-type]  # a decorator hides the types
        self.tensors = exchanged(self.model)
        self.pretrained = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.dense = tuple(name for name in self.task.fresh if name in self.tensors)
        # Decoding a dataset's rows costs more than a small model's step: keep them as lists.
        self.examples = lru_cache(maxsize=64)(self._examples)
        self.evaluation_examples = lru_cache(maxsize=64)(self._evaluation_examples)

    @cached_property
    def base(self) -> dict[str, NDArray[Any]]:
        """Return `pretrained` as NumPy arrays: what a client holds before it is sent anything."""
        return {name: tensor.cpu().numpy() for name, tensor in self.pretrained.items()}

    @cached_property
    def validation_examples(self) -> Examples:
        """Return the examples by which the server chooses q."""
        return list(self.task.validation or ())

    def save_model(self, folder: Path) -> None:
        """Write the model, as it is now, so that ``from_pretrained`` loads it."""
        self.model.save_pretrained(folder)
        if self.task.processor is not None:
            self.task.processor.save_pretrained(folder)

    def calibration(self, partition: int) -> Examples:
        """Return the examples of a client by which it weighs changes and searches for q."""
        return self._shares(partition)[1]

    def _examples(self, partition: int) -> Examples:
        return self._shares(partition)[0]

    def _shares(self, partition: int) -> tuple[Examples, Examples]:
        """Return what a client trains on and what it calibrates with.

        These are the same examples, unless the search needs some that were not trained on.
        """
        examples, config = list(self.task.partition(partition)), self.config
        count = config.compress.calibration_examples
        held = config.compress.holds_out
        if held and count >= len(examples):
            raise ConfigError(
                f"compress.calibration-examples = {count} leaves client {partition} nothing of "
                f"its {len(examples)} examples to train on; set a smaller number"
            )
        seed = derive(config.federation.seed, "calibration", partition)
        order = np.random.default_rng(seed).permutation(len(examples)).tolist()
        chosen = [examples[index] for index in order[:count]]
        return ([examples[index] for index in sorted(order[count:])] if held else examples), chosen

    def _evaluation_examples(self, partition: int | None = None) -> Examples:
        if partition is None:
            return list(self.task.evaluation)
        return list(self.task.evaluation_partition(partition))


@lru_cache(maxsize=1)
def session(config: RunConfig) -> Session:
    """Return this process's session for a configuration; the last one is kept."""
    return Session(config)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Make a model compute its layers' activations again on the way back, not keep them.

    Results stay the same, a step takes about a third longer. Checkpoints are non-reentrant, so
    frozen inputs and adapters work too.

    Raises:
        ConfigError: If the model cannot do it.
    """
    # The name changed within transformers 5; settings are the first argument of both.
    enable = getattr(model, "activation_checkpointing_enable", None)
    try:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.gradient-checkpointing = true, but {error}; set it to false"
        ) from None


def _device(config: RunConfig) -> torch.device:
    wanted = config.resources.num_gpus > 0 and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")
