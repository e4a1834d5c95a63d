"""A pre-trained causal language model and its tokenizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.causal.batches import pack
from fl_darex.tasks.causal.tokens import Tokens
from fl_darex.tasks.lengths import check_length
from fl_darex.tasks.pretrained import (
    load_config_of_kind,
    load_tokenizer,
    load_whole,
    model_class,
    pad_with_end,
)
from fl_darex.tasks.task import LoadedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_causal_config(task: TaskConfig) -> PretrainedConfig:
    """Return the configuration of ``task.model``, a causal language model.

    Raises:
        ConfigError: If there is no such model, it is none that goes from left to right, or it
            cannot pack and ``task.packing`` asks for it.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    def fits(found: Any) -> bool:
        # transformers has BERT and its kind on both lists; they see what is to come unless told so.
        encoder = type(found) in MODEL_FOR_MASKED_LM_MAPPING
        return type(found) in MODEL_FOR_CAUSAL_LM_MAPPING and (
            not encoder or getattr(found, "is_decoder", False)
        )

    config: PretrainedConfig = load_config_of_kind(
        task,
        "a language model: a folder or a hub name such as 'Qwen/Qwen2-0.5B'",
        fits,
        "which is not a causal language model; give one such as Llama, Qwen2 or GPT-2",
    )
    known = inspect.signature(model_class(config, MODEL_FOR_CAUSAL_LM_MAPPING).forward).parameters
    if task.packing and "position_ids" not in known:
        raise ConfigError(
            f"task.packing = true, but models of type {config.model_type!r} take no positions, so "
            "examples in one row would not stay apart; set task.packing = false"
        )
    return config


def load_causal_tokenizer(
    task: TaskConfig, config: PretrainedConfig, new_tokens: int = 0
) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; without a padding token, its end token becomes that too.

    Raises:
        ConfigError: If `load_tokenizer` refuses, or it has no end token.
    """
    found = load_tokenizer(task.model, config, task.max_length, new_tokens)
    if found.eos_token_id is None:
        raise ConfigError(
            f"task.model = {task.model!r}: its tokenizer has no end token, so the model cannot "
            "learn where an answer ends; set eos_token and save the tokenizer again"
        )
    pad_with_end(found)
    return found


def build_causal(task: TaskConfig, new_tokens: int = 0) -> LoadedModel:
    """Return the language model in float32.

    Args:
        task: Which model, how long its texts are, and whether packed examples have to stay apart.
        new_tokens: Tokens that will be generated after a text.

    Raises:
        ConfigError: If the weights cannot be loaded, are not all there, or the model mixes
            packed examples or takes no text of that length.
    """
    from transformers import AutoModelForCausalLM

    way_out = "give a checkpoint of the whole model"
    loaded = load_whole(task.model, AutoModelForCausalLM, "a language model", way_out)
    if task.packing:
        _check_packing(task.model, loaded.model)
    key = f"task.max-length = {task.max_length}"
    if new_tokens:
        key += f" + task.max-new-tokens = {new_tokens}"
    # Without the head, whose logits would be as many as the vocabulary for each token.
    body = loaded.model.base_model
    check_length(task.model, body, _row, task.max_length + new_tokens, key)
    return loaded


def _row(length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones((1, length), dtype=torch.int64)}


@torch.no_grad()
def _check_packing(name: str, model: PreTrainedModel) -> None:
    """Refuse a model that does not keep to the packed batch's mask: the loss would not show it."""
    first, second = Tokens([0, 1, 2, 1], [0, 1, 2, 1]), Tokens([2, 1, 0], [2, 1, 0])
    training = model.training
    model.train(False)
    packed = pack([first, second], 7, 0)
    del packed["labels"]
    together = model(**packed).logits[0, 4:]
    alone = model(input_ids=torch.tensor([second.ids])).logits[0]
    model.train(training)
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise ConfigError(
            f"task.packing = true, but task.model = {name!r} lets examples in one row see each "
            "other; set task.packing = false"
        )
