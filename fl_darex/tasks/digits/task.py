"""Task ``digits``: scans of handwritten digits and a small vision transformer.

Both come with the package, so this task runs anywhere without a download. The images are
scikit-learn's copy of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI,
1998, https://doi.org/10.24432/C50P49: 1,797 images of 8x8 pixels. The model was pre-trained on
the training images turned by 90 degrees (``benchmarks/digits_pretrain.py``), so that fine-tuning
on upright ones has features to build on and a good way to go.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fl_darex.config import RunConfig, TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.digits.checkpoint import materialise
from fl_darex.tasks.preparation import prepare
from fl_darex.tasks.pretrained import load_model_config, load_whole
from fl_darex.tasks.rows import Example
from fl_darex.tasks.task import LoadedModel, Task

if TYPE_CHECKING:
    from datasets import Dataset

CLASSES = 10
SIDE = 8
EVALUATION_EXAMPLES = 450
PACKAGED = Path(__file__).parent / "digits_checkpoint"
# Never the run's seed: the packaged model has seen the training half of this very split.
_SPLIT_SEED = 2025


def split_indices() -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and of the evaluation images, each sorted.

    The split is always the same, with 450 evaluation images in which the classes are as
    frequent as in all images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    train, evaluation = train_test_split(
        np.arange(len(labels)),
        test_size=EVALUATION_EXAMPLES,
        random_state=_SPLIT_SEED,
        stratify=labels,
    )
    return np.sort(train), np.sort(evaluation)


def images_and_labels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float32 ``(n, 1, 8, 8)`` in [-1, 1] (background -1), and int64 labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[rows] / 8.0 - 1.0).astype(np.float32)
    return images[:, None], digits.target[rows].astype(np.int64)


def load_digits_task(config: RunConfig) -> Task:
    """Return the digits task: ``pixel_values``, ``label``; accuracy unless set otherwise.

    Raises:
        ConfigError: If a setting does not fit, or ``task.model`` is no such vision transformer.
    """
    _refuse_text_settings(config.task)
    train, evaluation = (_dataset(rows) for rows in split_indices())
    return prepare(
        config,
        {"train": train, "evaluation": evaluation},
        classes=CLASSES,
        collate=collate,
        build=functools.partial(load_vit, config.task.model),
    )


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Return ``pixel_values`` (batch, 1, 8, 8) in float32 and ``labels`` (batch,) in int64."""
    pixels = np.asarray([example["pixel_values"] for example in examples], dtype=np.float32)
    labels = torch.tensor([int(example["label"]) for example in examples])
    return {"pixel_values": torch.from_numpy(pixels), "labels": labels}


def checkpoint_folder() -> Path:
    """Return a folder with the packaged model, which ``from_pretrained`` loads."""
    return materialise(PACKAGED)


def load_vit(name: str = "") -> LoadedModel:
    """Return a vision transformer for the digits, in float32 and the same at each call.

    Args:
        name: A folder or hub name; empty means the packaged model.

    Raises:
        ConfigError: If it is no vision transformer for 1x8x8 images and 10 classes.
    """
    from transformers import ViTForImageClassification

    if name:
        _check_config(name)
    way_out = "leave task.model empty for the packaged model"
    kind = "a vision transformer for digits"
    return load_whole(name or str(checkpoint_folder()), ViTForImageClassification, kind, way_out)


def _dataset(rows: np.ndarray) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    images, labels = images_and_labels(rows)
    pixels = Sequence(Sequence(Sequence(Value("float32"))))
    features = Features({"pixel_values": pixels, "label": ClassLabel(num_classes=CLASSES)})
    columns = {"pixel_values": images.tolist(), "label": labels.tolist()}
    # Rows as NumPy arrays are read several times faster than as nested lists.
    return Dataset.from_dict(columns, features=features).with_format("numpy")


def _refuse_text_settings(task: TaskConfig) -> None:
    for key, value in (("dataset", task.dataset), ("subset", task.subset)):
        if value:
            raise ConfigError(
                f"task.{key} = {value!r}: task.name = 'digits' brings its own data; leave "
                f"task.{key} empty, or set task.name = 'text-classification'"
            )
    if task.holdout:
        raise ConfigError(
            f"task.holdout = {task.holdout}: task.name = 'digits' has its own evaluation images, "
            "which the packaged model has not seen; set task.holdout = 0"
        )


def _check_config(name: str) -> None:
    from transformers import ViTConfig

    found = load_model_config(name)
    if not isinstance(found, ViTConfig):
        problem = f"is a model of type {found.model_type!r}"
    elif (found.image_size, found.num_channels, found.num_labels) != (SIDE, 1, CLASSES):
        problem = (
            f"takes {found.num_channels}x{found.image_size}x{found.image_size} images and has "
            f"{found.num_labels} classes"
        )
    else:
        return
    raise ConfigError(
        f"task.model = {name!r} {problem}; task.name = 'digits' needs a ViT for 1x8x8 images and "
        "10 classes; leave task.model empty for the packaged one"
    )
