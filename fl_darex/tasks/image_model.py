"""A pre-trained image classifier: its configuration and its image processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fl_darex.errors import ConfigError
from fl_darex.tasks.quiet import quiet
from fl_darex.tasks.sources import first_line, load_model_config, load_pretrained, local_folder

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_image_config(name: str) -> PretrainedConfig:
    """Return the configuration of a model that can classify images.

    Args:
        name: ``task.model``, a folder or a hub name.

    Raises:
        ConfigError: If there is no such model, or it does not classify images.
    """
    if not name:
        raise ConfigError(
            "task.model is empty; task.name = 'image-classification' needs a vision model: a "
            "folder or a hub name such as 'google/vit-base-patch16-224-in21k'"
        )
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    config: PretrainedConfig = load_model_config(name)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"task.model = {name!r} is of type {config.model_type!r}, which does not classify "
            "images; give a vision model such as ViT, DeiT, Swin or ResNet"
        )
    return config


def load_image_processor(name: str) -> BaseImageProcessor:
    """Return the model's image processor, which resizes and normalises.

    Always the one on Pillow and NumPy: the one on torchvision gives other bits, so a run would
    depend on what is installed.

    Raises:
        ConfigError: If it is missing or cannot be loaded.
    """
    from transformers import AutoImageProcessor

    folder = local_folder("task.model", name)
    if folder and not any((folder / file).is_file() for file in _PROCESSOR_FILES):
        raise ConfigError(
            f"task.model = {name!r} has no {_PROCESSOR_FILES[0]}; save the model's image "
            "processor into the same folder"
        )
    found: BaseImageProcessor = load_pretrained(
        name, "image processor", AutoImageProcessor.from_pretrained, backend="pil"
    )
    return found


def check_image_size(name: str, config: PretrainedConfig, pixels: torch.Tensor) -> None:
    """Refuse an image processor whose images the model does not take.

    The model runs on them without weights and without memory (torch's device ``meta``).

    Args:
        name: ``task.model``, for messages.
        config: The model's configuration.
        pixels: What the processor made of an image, shape (1, channels, height, width).

    Raises:
        ConfigError: If the model refuses this size or number of channels.
    """
    from transformers import AutoModelForImageClassification

    auto: Any = AutoModelForImageClassification  # its loaders have no types
    meta = torch.device("meta")
    try:
        with quiet(), meta, torch.no_grad():
            model = auto.from_config(config)
            model.train(False)(pixel_values=pixels.to(meta))
    except ValueError as error:
        shape = "x".join(map(str, pixels.shape[1:]))
        raise ConfigError(
            f"task.model = {name!r}: its image processor makes images of {shape} (channels, "
            f"height, width), its model does not take them: {first_line(error)}"
        ) from None
    except (RuntimeError, NotImplementedError):
        return  # what has no shape without values: then the first batch tells
