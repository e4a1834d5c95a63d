"""A pre-trained encoder for texts: its configuration and its tokenizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from fl_darex.errors import ConfigError
from fl_darex.tasks.classifier import model_class
from fl_darex.tasks.sources import load_model_config, load_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def load_encoder_config(name: str) -> PretrainedConfig:
    """Return the configuration of an encoder that can classify texts.

    Args:
        name: ``task.model``, a folder or a hub name.

    Raises:
        ConfigError: If there is no such model, or it does not classify texts.
    """
    if not name:
        raise ConfigError(
            "task.model is empty; task.name = 'text-classification' needs an encoder: a folder "
            "or a hub name such as 'distilbert/distilbert-base-uncased'"
        )
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config: PretrainedConfig = load_model_config(name)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"task.model = {name!r} is of type {config.model_type!r}, which does not classify "
            "texts; give a text encoder such as BERT, DistilBERT or RoBERTa"
        )
    return config


def load_tokenizer(name: str, config: PretrainedConfig, max_length: int) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer.

    Raises:
        ConfigError: If it is missing or does not fit the model, or the model cannot take
            ``max_length`` tokens.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    found = load_any_tokenizer(name, config)
    if found.pad_token is None:
        raise ConfigError(
            f"task.model = {name!r}: its tokenizer has no padding token, so texts of different "
            "length make no batch; give an encoder such as BERT, DistilBERT or RoBERTa"
        )
    check_length(name, found, config, max_length)
    # A tokenizer may offer token types to a model that has none, and is refused by its forward.
    model = model_class(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    known = inspect.signature(model.forward).parameters
    found.model_input_names = [name for name in found.model_input_names if name in known]
    return found


def load_any_tokenizer(name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of any text model.

    Raises:
        ConfigError: If it is missing or has more tokens than the model.
    """
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = load_pretrained(
        name, "tokenizer", AutoTokenizer.from_pretrained
    )
    # Without files, transformers 5 returns a tokenizer that knows special tokens only.
    if len(found) <= len(found.all_special_tokens):
        raise ConfigError(
            f"task.model = {name!r} has no tokenizer files; save the tokenizer into the same folder"
        )
    vocabulary = getattr(config, "vocab_size", None) or len(found)
    if len(found) > vocabulary:
        raise ConfigError(
            f"task.model = {name!r}: its tokenizer has {len(found)} tokens, its model "
            f"{vocabulary}; they do not belong together"
        )
    return found


def check_length(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    max_length: int,
    new_tokens: int = 0,
) -> None:
    """Refuse more tokens than the model has positions for.

    Args:
        name: ``task.model``, for messages.
        tokenizer: Its tokenizer, which may know a limit of its own.
        config: Its configuration.
        max_length: ``task.max-length``.
        new_tokens: ``task.max-new-tokens`` where texts are generated; 0 = none are.

    Raises:
        ConfigError: If ``max_length + new_tokens`` is too much.
    """
    positions = getattr(config, "max_position_embeddings", None) or 0
    limit = tokenizer.model_max_length
    if positions > 0:
        limit = min(limit, positions)
    if max_length > limit:
        raise ConfigError(
            f"task.max-length = {max_length} is more than task.model = {name!r} can take; "
            f"allowed: 4 to {limit}"
        )
    if max_length + new_tokens > limit:
        raise ConfigError(
            f"task.max-length = {max_length} and task.max-new-tokens = {new_tokens} are together "
            f"more than the {limit} tokens that task.model = {name!r} can take; use smaller ones"
        )
