"""Pre-trained models from a local folder or the Hugging Face hub, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.heads import Head, tensors_of_head
from fl_darex.tasks.sources import first_line, local_folder, quiet
from fl_darex.tasks.task import LoadedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_pretrained(name: str, part: str, loader: Callable[..., Any], **settings: Any) -> Any:
    """Call a ``from_pretrained`` for ``task.model`` without its progress bars and reports.

    Args:
        name: ``task.model``, a folder or a hub name.
        part: What is loaded, for messages: ``"weights"``.
        loader: The function to call with the name or the folder's path.
        **settings: Passed on to the loader.

    Raises:
        ConfigError: If the loader raises anything: hub, network and file formats fail in as
            many ways as the libraries below have exceptions.
    """
    folder = local_folder("task.model", name)
    with quiet():
        try:
            return loader(str(folder) if folder else name, **settings)
        except Exception as error:
            where = "" if folder else "no such folder, and not loaded from the hub; "
            raise ConfigError(
                f"task.model = {name!r}: {where}its {part} cannot be loaded: {first_line(error)}"
            ) from None


def load_model_config(name: str) -> Any:
    """Return the transformers configuration of ``task.model``, a folder or a hub name.

    Raises:
        ConfigError: If there is no such model, or the folder holds none.
    """
    from transformers import AutoConfig

    folder = local_folder("task.model", name)
    if folder and not (folder / "config.json").is_file():
        raise ConfigError(
            f"task.model = {name!r} has no config.json; give the folder that save_pretrained wrote"
        )
    return load_pretrained(name, "configuration", AutoConfig.from_pretrained)


def load_config_of_kind(
    task: TaskConfig, needs: str, fits: Callable[[Any], bool], refusal: str
) -> Any:
    """Return the transformers configuration of ``task.model``, if it is of the kind at hand.

    Args:
        task: Which model.
        needs: The kind with a name on the hub, for messages.
        fits: Whether a configuration is of that kind.
        refusal: What a model of another kind does wrong, and what to give instead.

    Raises:
        ConfigError: If there is no such model, or it is of another kind.
    """
    if not task.model:
        raise ConfigError(f"task.model is empty; task.name = {task.name!r} needs {needs}")
    config = load_model_config(task.model)
    if not fits(config):
        raise ConfigError(
            f"task.model = {task.model!r} is of type {config.model_type!r}, {refusal}"
        )
    return config


def load_tokenizer(
    name: str, config: PretrainedConfig, max_length: int, new_tokens: int = 0
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of any text model.

    Args:
        name: ``task.model``.
        config: The model's configuration.
        max_length: ``task.max-length``.
        new_tokens: Tokens that will be generated after it.

    Raises:
        ConfigError: If it is missing or has more tokens than the model, or it or the model's
            configuration knows of a limit below ``max_length + new_tokens``.
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
    # Ids may have gaps; the highest is what the embedding has to have a row for.
    tokens = 1 + max(found.get_vocab().values())
    vocabulary = getattr(config.get_text_config(), "vocab_size", None) or tokens
    if tokens > vocabulary:
        raise ConfigError(
            f"task.model = {name!r}: its tokenizer has {tokens} tokens, its model {vocabulary}; "
            "save the tokenizer that the model was trained with into its folder, or give the model "
            "rows for the new tokens with model.resize_token_embeddings(len(tokenizer)) and save it"
        )
    # The tokenizer may know a limit of its own.
    positions = getattr(config, "max_position_embeddings", None) or 0
    limit = min(found.model_max_length, positions if positions > 0 else found.model_max_length)
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
    return found


def pad_with_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Make the end token the padding token where there is none; return whether it is one now.

    Padding is told from texts by the attention mask and by lengths, never by its token alone.
    """
    if tokenizer.pad_token_id is not None or tokenizer.eos_token_id is None:
        return False
    tokenizer.pad_token = tokenizer.eos_token
    return True


def load_weights(name: str, auto: Any, **settings: Any) -> tuple[Any, Any]:
    """Return ``task.model`` in float32 by a class's ``from_pretrained``, and what did not fit."""
    settings |= {"dtype": torch.float32, "output_loading_info": True}
    model, info = load_pretrained(name, "weights", auto.from_pretrained, **settings)
    return model, info


def load_whole(name: str, auto: Any, kind: str, way_out: str) -> LoadedModel:
    """Return a model of which a checkpoint has every tensor.

    Args:
        name: ``task.model``, a folder or a hub name.
        auto: The class whose ``from_pretrained`` loads it.
        kind: What the model is, for messages.
        way_out: What to do where it is not, for a person.

    Raises:
        ConfigError: If the weights cannot be loaded, or are not all there.
    """
    model, info = load_weights(name, auto)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"task.model = {name!r}: its weights lack {len(missing)} tensors of {kind}, "
            f"{missing[0]!r} among them; {way_out}"
        )
    return LoadedModel(model, ())


def model_class(config: PretrainedConfig, mapping: Mapping[Any, Any]) -> Any:
    """Return the class that a mapping of ``transformers`` has for a configuration."""
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def build_classifier(name: str, auto: Any, head: Head) -> LoadedModel:
    """Return a pre-trained model in float32 with a head for the labels.

    A head that the checkpoint lacks, or has for other classes, is drawn from the global random
    generator.

    Args:
        name: ``task.model``, a folder or a hub name.
        auto: The class whose ``from_pretrained`` loads it, ``AutoModelForImageClassification``.
        head: The outputs; without names a regression (one output, squared error).

    Raises:
        ConfigError: If the weights cannot be loaded or are not those of such a model.
    """
    settings: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if head.names:
        settings = {
            "id2label": dict(enumerate(head.names)),
            "label2id": {label: i for i, label in enumerate(head.names)},
            "problem_type": "single_label_classification",
        }
    model, info = load_weights(name, auto, ignore_mismatched_sizes=True, **settings)
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    fresh = {*info["missing_keys"], *mismatched}
    _check_weights(name, model, fresh, mismatched)
    if head.fresh:
        with quiet():
            outputs = tensors_of_head(auto, model.config)
        for module in {key.rpartition(".")[0] for key in outputs if key not in fresh}:
            _draw(name, model.get_submodule(module))
        fresh.update(outputs)
    return LoadedModel(model, tuple(sorted(fresh)))


def _draw(name: str, module: Any) -> None:
    if not hasattr(module, "reset_parameters"):
        raise ConfigError(
            f"task.model = {name!r}: its head is for other classes than those of the data, and a "
            f"{type(module).__name__} cannot be drawn anew; give the model without its head"
        )
    module.reset_parameters()


def _check_weights(
    name: str, model: PreTrainedModel, fresh: set[str], mismatched: set[str]
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
