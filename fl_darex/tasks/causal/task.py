"""Task ``causal-lm``: any causal language model on any data set of texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fl_darex.config import RunConfig
from fl_darex.tasks.causal.answers import is_right
from fl_darex.tasks.causal.batches import pack, pad_right
from fl_darex.tasks.causal.generation import generate_greedily
from fl_darex.tasks.causal.metrics import COLUMNS, choose_lm_metric, reduce_logits, token_scores
from fl_darex.tasks.causal.model import build_causal, load_causal_config, load_causal_tokenizer
from fl_darex.tasks.causal.prompts import load_causal_data
from fl_darex.tasks.causal.tokens import IGNORED, Tokenization
from fl_darex.tasks.preparation import prepare
from fl_darex.tasks.rows import Example
from fl_darex.tasks.task import Predictions, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal_task(config: RunConfig) -> Task:
    """Return the task: texts are kept as they are and turned into tokens batch by batch.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit the settings.
    """
    task = config.task
    model = load_causal_config(task)
    parts, text_format = load_causal_data(config)
    metric = choose_lm_metric(task.metric, text_format.prompted)
    new_tokens = task.max_new_tokens if metric == "exact-match" else 0
    tokenizer = load_causal_tokenizer(task, model, new_tokens)
    tokens = Tokenization(tokenizer, text_format, task.max_length, task.template == "chat")
    return prepare(
        config,
        parts,
        metric_name=metric,
        metric=functools.partial(token_scores, metric=metric),
        collate=functools.partial(collate, tokens=tokens, width=task.packing * task.max_length),
        build=functools.partial(build_causal, task, new_tokens),
        kind=CausalTask,
        processor=tokenizer,
        tokens=tokens,
        tokenizer=tokenizer,
        answer=text_format.answer,
        max_new_tokens=task.max_new_tokens,
    )


def collate(examples: list[Example], *, tokens: Tokenization, width: int) -> dict[str, Tensor]:
    """Return a batch: as few rows of a width as the examples fit into, or 0: an example a row."""
    encoded = tokens.encode(examples)
    return pack(encoded, width, tokens.pad) if width else pad_right(encoded, tokens.pad)


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

    def inputs(self, examples: list[Example]) -> dict[str, Tensor]:
        """Return a batch to measure a model on: an example a row, packing or not."""
        return collate(examples, tokens=self.tokens, width=0)

    def loss_terms(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many tokens count in a batch's loss."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def predict(self, model: PreTrainedModel, examples: list[Example]) -> Predictions:
        """Return ``metrics.COLUMNS`` and the number of counted tokens of each example.

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
            pairs = zip(self.generate(model, examples), examples, strict=True)
            exact = [is_right(answer, example[self.answer]) for answer, example in pairs]
            rows[:, COLUMNS.index("exact")] = exact
        return Predictions(rows, counted, float(rows[:, 0].sum()), int(counted.sum()))

    def generate(self, model: PreTrainedModel, examples: list[Example]) -> list[str]:
        """Return the model's own answer to each example's prompt, decoded greedily."""
        generated = generate_greedily(model, self.tokens, examples, self.max_new_tokens)
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True)
        return [str(decode(ids)).strip() for ids in generated]
