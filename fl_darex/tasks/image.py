"""Task ``image-classification``: any vision model on any data set of images and classes.

Preprocessing is that of the model's own image processor, for training as for evaluation; there
is no augmentation, so that a client's result depends on nothing but its examples and its seed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.seeds import derive
from fl_darex.tasks.classifier import build_classifier
from fl_darex.tasks.image_data import ORIGIN, load_image_data
from fl_darex.tasks.image_model import check_image_size, load_image_config, load_image_processor
from fl_darex.tasks.images import open_image
from fl_darex.tasks.metrics import METRICS, choose_metric
from fl_darex.tasks.partitions import Partitions
from fl_darex.tasks.sampling import take_validation
from fl_darex.tasks.sources import first_line
from fl_darex.tasks.task import Example, Task, check_evaluation_shares

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def load_image_task(config: RunConfig) -> Task:
    """Return the task: images stay encoded and are decoded and resized batch by batch.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit each other or the
            settings.
    """
    from transformers import AutoModelForImageClassification

    task, federation = config.task, config.federation
    vision = load_image_config(task.model)
    processor = load_image_processor(task.model)
    owner = federation.partition_column if federation.partition == "natural" else ""
    data = load_image_data(task, owner, federation.evaluate != "none")
    train, validation = take_validation(data.train, config)
    first = collate([train[0]], processor=processor)
    check_image_size(task.model, vision, first["pixel_values"])
    metric = choose_metric(task.metric, len(data.label_names))
    if federation.evaluate == "clients":
        check_evaluation_shares(len(data.evaluation), federation.clients)
    return Task(
        metric_name=metric,
        train=train,
        evaluation=data.evaluation,
        partitions=Partitions(train, len(data.label_names), federation),
        collate=functools.partial(collate, processor=processor),
        build=functools.partial(
            build_classifier,
            task.model,
            AutoModelForImageClassification,
            data.label_names,
            derive(federation.seed, "head"),
        ),
        metric=METRICS[metric],
        validation=validation,
        processor=processor,
    )


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
