"""Task ``image-classification``: any vision model on any data set of images and classes.

Preprocessing is that of the model's own image processor, for training as for evaluation; there
is no augmentation, so that a client's result depends on nothing but its examples and its seed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.heads import choose_head
from fl_darex.tasks.image.data import ORIGIN, load_image_data
from fl_darex.tasks.image.pictures import check_images, open_image
from fl_darex.tasks.preparation import prepare
from fl_darex.tasks.pretrained import (
    build_classifier,
    load_config_of_kind,
    load_pretrained,
    model_class,
)
from fl_darex.tasks.rows import Example
from fl_darex.tasks.sources import first_line, local_folder, quiet
from fl_darex.tasks.task import Task

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig


_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_image_task(config: RunConfig) -> Task:
    """Return the task: images stay encoded and are decoded and resized batch by batch.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit each other or the
            settings; or if an image that is used has no readable header.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as KNOWN
    from transformers import AutoModelForImageClassification

    model = config.task.model
    vision = load_config_of_kind(
        config.task,
        "a vision model: a folder or a hub name such as 'google/vit-base-patch16-224-in21k'",
        lambda found: type(found) in KNOWN,
        "which does not classify images; give a vision model such as ViT, DeiT, Swin or ResNet",
    )
    processor = _load_processor(model)
    tables, found = load_image_data(config)
    head, labels = choose_head(model, vision, model_class(vision, KNOWN), found)
    parts = {
        part: rows.add_column("label", ids)
        for (part, rows), ids in zip(tables.items(), labels.ids, strict=True)
    }
    task = prepare(
        config,
        parts,
        classes=len(head.names),
        build=functools.partial(build_classifier, model, AutoModelForImageClassification, head),
        collate=functools.partial(collate, processor=processor),
        processor=processor,
        notes=labels.notes,
    )
    for rows in filter(None, (task.train, task.validation, task.evaluation)):
        check_images(rows["image"], rows[ORIGIN])
    _check_image_size(model, vision, task.collate([task.train[0]])["pixel_values"])
    return task


def collate(examples: list[Example], *, processor: BaseImageProcessor) -> dict[str, torch.Tensor]:
    """Return ``pixel_values`` (batch, 3, height, width) in float32 and ``labels`` (batch,).

    Args:
        examples: Rows with ``image`` (encoded), ``label`` and where the image comes from.
        processor: The model's.

    Raises:
        ConfigError: If an image is damaged, or the processor cannot make a batch of them.
    """
    images = [open_image(example["image"], example[ORIGIN]) for example in examples]
    try:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    except ValueError as error:
        sizes = ", ".join(sorted({f"{image.width}x{image.height}" for image in images}))
        raise ConfigError(
            f"the model's image processor makes no batch of images of {sizes} pixels, "
            f"{examples[0][ORIGIN]} among them: {first_line(error)}"
        ) from None
    labels = torch.tensor([int(example["label"]) for example in examples])
    return {"pixel_values": pixels.to(torch.float32), "labels": labels}


def _load_processor(name: str) -> BaseImageProcessor:
    """Return the model's image processor, which resizes and normalises.

    Always the one on Pillow and NumPy: the one on torchvision gives other bits, so a run would
    depend on what is installed.
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


def _check_image_size(name: str, config: PretrainedConfig, pixels: torch.Tensor) -> None:
    """Refuse an image processor whose images (1, channels, height, width) the model refuses.

    The model runs on them without weights and without memory (torch's device ``meta``).
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
