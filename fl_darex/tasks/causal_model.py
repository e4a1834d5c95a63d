"""A pre-trained causal language model and its tokenizer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.causal_batches import pack
from fl_darex.tasks.causal_tokens import Tokens
from fl_darex.tasks.classifier import model_class
from fl_darex.tasks.sources import load_model_config, load_pretrained
from fl_darex.tasks.task import LoadedModel
from fl_darex.tasks.text_model import check_length, load_any_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_causal_config(task: TaskConfig) -> PretrainedConfig:
    """Return the configuration of ``task.model``, a causal language model.

    Raises:
        ConfigError: If there is no such model, it is none that goes from left to right, or it
            cannot pack and ``task.packing`` asks for it.
    """
    if not task.model:
        raise ConfigError(
            "task.model is empty; task.name = 'causal-lm' needs a language model: a folder or a "
            "hub name such as 'Qwen/Qwen2-0.5B'"
        )
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config: PretrainedConfig = load_model_config(task.model)
    # transformers has BERT and its kind on both lists; they see what is to come unless told so.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (
        encoder and not getattr(config, "is_decoder", False)
    ):
        raise ConfigError(
            f"task.model = {task.model!r} is of type {config.model_type!r}, which is not a causal "
            "language model; give one such as Llama, Qwen2 or GPT-2"
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

    Args:
        task: Model and length.
        config: The model's configuration.
        new_tokens: Tokens that will be generated after ``task.max-length``.

    Raises:
        ConfigError: If it is missing or does not fit the model, has no end token, or the model
            cannot take that many tokens.
    """
    found = load_any_tokenizer(task.model, config)
    if found.eos_token_id is None:
        raise ConfigError(
            f"task.model = {task.model!r}: its tokenizer has no end token, so the model cannot "
            "learn where an answer ends; set eos_token and save the tokenizer again"
        )
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    check_length(task.model, found, config, task.max_length, new_tokens)
    return found


def build_causal(name: str, packing: bool = False) -> LoadedModel:
    """Return the language model in float32, the same at each call.

    Args:
        name: ``task.model``, a folder or a hub name.
        packing: Whether to check that packed examples stay apart.

    Raises:
        ConfigError: If the weights cannot be loaded, are not all there, or the model mixes
            packed examples.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        # Missing tensors are drawn before they are refused: leave the global generator alone.
        model, info = load_pretrained(
            name,
            "weights",
            AutoModelForCausalLM.from_pretrained,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"task.model = {name!r}: its weights lack {len(missing)} tensors of a language model, "
            f"{missing[0]!r} among them; give a checkpoint of the whole model"
        )
    if packing:
        _check_packing(name, model)
    return LoadedModel(model, ())


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
