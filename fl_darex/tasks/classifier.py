"""A pre-trained model with a head for the labels at hand, whatever it classifies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.errors import ConfigError
from fl_darex.tasks.sources import load_pretrained
from fl_darex.tasks.task import LoadedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def model_class(config: PretrainedConfig, mapping: Mapping[Any, Any]) -> Any:
    """Return the class that a mapping of ``transformers`` has for a configuration."""
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def build_classifier(name: str, auto: Any, label_names: tuple[str, ...], seed: int) -> LoadedModel:
    """Return a pre-trained model in float32 with a head for the labels, the same at each call.

    A head that the checkpoint lacks, or has for another number of classes, is drawn from the
    seed; the global random generator stays as it was.

    Args:
        name: ``task.model``, a folder or a hub name.
        auto: The class whose ``from_pretrained`` loads it, ``AutoModelForImageClassification``.
        label_names: One name per class; empty for a regression (one output, squared error).
        seed: Seed of a new head.

    Raises:
        ConfigError: If the weights cannot be loaded or are not those of such a model.
    """
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
            auto.from_pretrained,
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
