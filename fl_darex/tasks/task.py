"""What is learned: a model, its data in partitions, and how a result is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_darex.errors import ConfigError
from fl_darex.shown import described
from fl_darex.tasks.metrics import Metric
from fl_darex.tasks.partitions import Partitions
from fl_darex.tasks.rows import Example, Rows, pick

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the names of its tensors that the checkpoint did not have (sorted)."""

    model: Any
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class Predictions:
    """What is kept of a model's answer to a batch: small, whatever the size of its logits.

    Attributes:
        outputs: A row for each example, all that the metric needs of the model's output.
        labels: What the metric compares it with, one entry for each example.
        loss: Sum of the losses.
        terms: How many losses the sum has: examples, or tokens of a language model.
    """

    __repr__ = described

    outputs: np.ndarray
    labels: np.ndarray
    loss: float
    terms: int


@dataclass(frozen=True, eq=False)
class Task:
    """A learning task as the training loop and the server see it.

    Equal configurations give equal tasks in every process: the same weights bit by bit, the
    same partitions, the same evaluation examples.

    A model is a ``torch.nn.Module`` whose ``forward(**batch)`` returns an object with ``.loss``,
    the mean over the batch, and ``.logits``, a row for each example; called without ``labels``, the
    logits alone. Models of transformers are such. One with ``save_pretrained`` is saved by it, any
    other as ``model.safetensors``, its state. Examples are a ``datasets.Dataset`` or a plain
    sequence of dicts; a column ``label`` is needed where the partition goes by class.

    Attributes:
        metric_name: The key of the main result in what ``metric`` returns; higher is better.
        train: All training examples, those of every client.
        evaluation: Examples that no client trains on.
        partitions: Which training example belongs to which client.
        collate: Turns examples into a batch of model inputs, ``labels`` among them, so that
            ``model(**collate(examples))`` has ``.loss`` and ``.logits``.
        build: Loads the model anew.
        metric: Computes the results, ``{name: value}``, from the outputs and labels of ``predict``.
        validation: Examples by which the server chooses q, neither trained on nor evaluated;
            None: it does not.
        processor: What a user needs beside the model, a tokenizer or an image processor;
            saved with it.
        test: Examples for the final model alone: nothing may be chosen by them. None = none.
        notes: How data and model were understood where that is not plain, a line each for the log.
        classes: Number of classes that the column ``label`` has; 0 = it has none.
    """

    metric_name: str
    train: Rows
    evaluation: Rows
    partitions: Partitions
    collate: Callable[[list[Example]], dict[str, Tensor]]
    build: Callable[[], LoadedModel]
    metric: Metric
    validation: Rows | None = None
    processor: PreTrainedTokenizerBase | BaseImageProcessor | None = None
    test: Rows | None = None
    notes: tuple[str, ...] = ()
    classes: int = 0

    def load_model(self) -> Any:
        """Return the model in float32 on the CPU, with the same weights at each call.

        Tensors that the checkpoint lacks are drawn from the run's seed; the global random
        generator is neither used nor moved.

        Raises:
            ConfigError: If the weights cannot be loaded.
        """
        built = self.build()
        self.__dict__.setdefault("fresh", built.fresh)  # or it would be built for them again
        return built.model

    @cached_property
    def fresh(self) -> tuple[str, ...]:
        """Names of the state's tensors that the base checkpoint lacks, sorted."""
        return self.build().fresh

    def partition(self, index: int) -> Any:
        """Return the training examples of client ``index``; never empty.

        Raises:
            ConfigError: If ``index`` is not in ``0 .. federation.clients - 1``.
        """
        return pick(self.train, self.partitions.indices(index))

    def evaluation_partition(self, index: int) -> Any:
        """Return the contiguous share of ``evaluation`` that client ``index`` evaluates.

        Sizes differ by one example at most, and the shares of all clients are the whole.

        Raises:
            ConfigError: If there is no such client, or fewer examples than clients.
        """
        clients = self.partitions.clients
        self.partitions.check(index)
        examples = len(self.evaluation)
        if examples < clients:
            raise ConfigError(
                "federation.evaluate = 'clients' needs at least one evaluation example per "
                f"client; there are {examples} for federation.clients = {clients}; use 'server', "
                "fewer clients or more evaluation examples"
            )
        bounds = [examples * i // clients for i in (index, index + 1)]
        return pick(self.evaluation, range(*bounds))

    def inputs(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return a batch to measure a model on: as ``collate``, and always an example a row."""
        return self.collate(examples)

    def loss_terms(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many losses the mean of a batch's ``loss`` is over: its examples.

        Batches whose gradients are added up count by this number.
        """
        return len(batch["labels"])

    def predict(self, model: Any, examples: list[Example]) -> Predictions:
        """Return what the results need of a model's answer to a batch: here, the logits.

        A task whose logits are large reduces them here, batch by batch; ``score`` then sees the
        rows of all batches at once.
        """
        device = next(model.parameters()).device
        inputs = {key: value.to(device) for key, value in self.inputs(examples).items()}
        output = model(**inputs)
        return Predictions(
            outputs=output.logits.float().cpu().numpy(),
            labels=inputs["labels"].cpu().numpy(),
            loss=float(output.loss) * len(examples),
            terms=len(examples),
        )

    def score(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return ``{metric_name: value}``, with its components where it is a mean of several.

        Args:
            outputs: Rows of ``predict``: logits, shape ``(examples, classes)``, or
                ``(examples, 1)`` for a regression.
            labels: Shape ``(examples,)``.

        Raises:
            ValueError: If there is no example.
            ConfigError: If the metric gives no ``metric_name``.
        """
        scores = self.metric(np.asarray(outputs), np.asarray(labels))
        if self.metric_name not in scores:
            raise ConfigError(
                f"the task's metric gives {', '.join(scores)}, and not the main result that its "
                f"metric_name says, {self.metric_name!r}"
            )
        return scores
