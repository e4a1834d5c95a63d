"""A pre-trained encoder with a classification head, and its tokenizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.errors import ConfigError

from .sources import load_model_config, load_pretrained
from .task import LoadedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    found = load_any_tokenizer(name, config)
    if found.pad_token is None:
        raise ConfigError(
            f"task.model = {name!r}: its tokenizer has no padding token, so texts of different "
            "length make no batch; give an encoder such as BERT, DistilBERT or RoBERTa"
        )
    check_length(name, found, config, max_length)
    # A tokenizer may offer token types to a model that has none, and is refused by its forward.
    known = inspect.signature(_model_class(config).forward).parameters
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


def _model_class(config: PretrainedConfig) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def build_encoder(name: str, label_names: tuple[str, ...], seed: int) -> LoadedModel:
    """Return the encoder in float32 with a head for the labels, the same at each call.

    A head that the checkpoint lacks, or has for another number of classes, is drawn from the
    seed; the global random generator stays as it was.

    Args:
        name: ``task.model``, a folder or a hub name.
        label_names: One name per class; empty for a regression (one output, squared error).
        seed: Seed of a new head.

    Raises:
        ConfigError: If the weights cannot be loaded or are not those of such a model.
    """
    from transformers import AutoModelForSequenceClassification

    settings: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if label_names:
        settings = {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: i for i, label in enumerate(label_names)},
            "problem_type": "single_label_classification",
        }
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would move those of GPUs too.
        torch.default_generator.manual_seed(seed)
        model, info = load_pretrained(
            name,
            "weights",
            AutoModelForSequenceClassification.from_pretrained,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    fresh = tuple(sorted({*info["missing_keys"], *mismatched}))
    _check_weights(name, model, fresh, mismatched)
    return LoadedModel(model, fresh)


def _check_weights(
    name: str, model: PreTrainedModel, fresh: tuple[str, ...], mismatched: set[str]
) -> None:
    base = f"{model.base_model_prefix}."
    state = model.state_dict()
    lacking = sum(state[key].numel() for key in fresh if key in state)
    if 2 * lacking > sum(tensor.numel() for tensor in state.values()):
        problem = "hold less than half of the model that its config.json describes"
    elif wrong := sorted(key for key in mismatched if key.startswith(base)):
        problem = f"have another shape than its config.json says, {wrong[0]!r} among them"
    else:
        return
    raise ConfigError(f"task.model = {name!r}: its weights {problem}; save the model again")
