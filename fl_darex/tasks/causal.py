"""Task ``causal-lm``: any causal language model on any data set of texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fl_darex.config import RunConfig, TaskConfig
from fl_darex.tasks.answers import is_right
from fl_darex.tasks.causal_batches import pack, pad_right
from fl_darex.tasks.causal_data import load_causal_data
from fl_darex.tasks.causal_model import build_causal, load_causal_config, load_causal_tokenizer
from fl_darex.tasks.causal_tokens import IGNORED, Tokenization
from fl_darex.tasks.generation import generate_greedily
from fl_darex.tasks.partitions import Partitions
from fl_darex.tasks.sampling import take_validation
from fl_darex.tasks.task import Example, Predictions, Task, check_evaluation_shares
from fl_darex.tasks.token_metrics import COLUMNS, choose_lm_metric, reduce_logits, token_scores

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal_task(config: RunConfig) -> Task:
    """Return the task: texts are kept as they are and turned into tokens batch by batch.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit the settings.
    """
    task, federation = config.task, config.federation
    model = load_causal_config(task)
    owner = federation.partition_column if federation.partition == "natural" else ""
    data = load_causal_data(task, owner, federation.evaluate != "none")
    train, validation = take_validation(data.train, config)
    metric = choose_lm_metric(task.metric, data.text_format.prompted)
    new_tokens = task.max_new_tokens if metric == "exact-match" else 0
    tokenizer = load_causal_tokenizer(task, model, new_tokens)
    tokens = Tokenization(tokenizer, data.text_format, task.max_length, task.template == "chat")
    if federation.evaluate == "clients":
        check_evaluation_shares(len(data.evaluation), federation.clients)
    return CausalTask(
        metric_name=metric,
        train=train,
        evaluation=data.evaluation,
        validation=validation,
        test=data.test,
        partitions=Partitions(train, 0, federation),
        collate=functools.partial(collate, tokens=tokens, pad=_pad(tokenizer), task=task),
        build=functools.partial(build_causal, task.model, task.packing),
        metric=functools.partial(token_scores, metric=metric),
        processor=tokenizer,
        tokens=tokens,
        tokenizer=tokenizer,
        answer=data.text_format.answer,
        max_new_tokens=task.max_new_tokens,
    )


def collate(
    examples: list[Example], *, tokens: Tokenization, pad: int, task: TaskConfig
) -> dict[str, Tensor]:
    """Return a training batch: an example a row, or with ``task.packing`` as few rows as fit."""
    encoded = tokens.encode(examples)
    return pack(encoded, task.max_length, pad) if task.packing else pad_right(encoded, pad)


@dataclass(frozen=True, eq=False, kw_only=True)
class CausalTask(Task):
    """A task whose loss is a mean over tokens, and whose logits are reduced batch by batch.

    Attributes:
        tokens: Turns examples into tokens.
        tokenizer: Turns generated tokens into text.
        answer: The column with the reference.
        max_new_tokens: Where a generated answer ends at the latest.
    """

    tokens: Tokenization = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    answer: str
    max_new_tokens: int

    @functools.cached_property
    def fresh(self) -> tuple[str, ...]:
        """Nothing: a checkpoint that lacks tensors is refused."""
        return ()

    def inputs(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return a batch to measure a model on: an example a row, packing or not."""
        return pad_right(self.tokens.encode(examples), _pad(self.tokenizer))

    def loss_terms(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many tokens count in a batch's loss."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def predict(self, model: PreTrainedModel, examples: list[Example]) -> Predictions:
        """Return ``token_metrics.COLUMNS`` and the number of counted tokens of each example.

        The loss is that of the reference answers, whatever the model would say itself; for the
        metric ``exact-match`` it is asked too. Memory is that of one batch's logits: examples x
        length x vocabulary, so ``train.eval-batch-size`` should be small. Where clients evaluate
        (``federation.evaluate``), the server averages their results by examples, not by tokens.
        """
        batch = {key: value.to(model.device) for key, value in self.inputs(examples).items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits
        rows, counted = reduce_logits(logits, labels)
        del logits  # generation needs the room
        if self.metric_name == "exact-match":
            rows[:, COLUMNS.index("exact")] = self.exact(model, examples)
        return Predictions(rows, counted, float(rows[:, 0].sum()), int(counted.sum()))

    def exact(self, model: PreTrainedModel, examples: list[Example]) -> np.ndarray:
        """Return 1.0 for each example whose generated answer is the reference's, else 0.0."""
        answers = self.generate(model, examples)
        references = [example[self.answer] for example in examples]
        pairs = zip(answers, references, strict=True)
        return np.array([float(is_right(answer, reference)) for answer, reference in pairs])

    def generate(self, model: PreTrainedModel, examples: list[Example]) -> list[str]:
        """Return the model's own answer to each example's prompt, decoded greedily."""
        generated = generate_greedily(
            model,
            self.tokens.prompts(examples),
            pad=_pad(self.tokenizer),
            stop=self.tokens.stop,
            max_new_tokens=self.max_new_tokens,
        )
        return [
            str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in generated
        ]


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)
