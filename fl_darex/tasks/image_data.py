"""Images and classes, from a folder or the hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.image_files import read_image_folder
from fl_darex.tasks.images import check_images
from fl_darex.tasks.labels import encode_labels, hidden
from fl_darex.tasks.partitions import check_owner_column
from fl_darex.tasks.sampling import set_apart, subsample
from fl_darex.tasks.sources import dataset_folder, load_hub_dataset
from fl_darex.tasks.splits import evaluation_split, training_split

if TYPE_CHECKING:
    from datasets import Dataset

# What well-known data sets call these columns; the first that is there counts.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
ORIGIN = "image-origin"
"""The column that says where an image comes from, for messages."""
MAX_CLASSES = 100_000
_BINARY = ("binary", "large_binary")


@dataclass(frozen=True)
class ImageData:
    """Examples to learn from and to measure on.

    Attributes:
        train: Columns ``image`` (encoded: bytes or a path), ``label``, ``ORIGIN`` and, where one
            is set, the owner's column.
        evaluation: The same columns; no row of ``train``.
        label_names: What each class was called in the data; position = label.
    """

    train: Dataset
    evaluation: Dataset
    label_names: tuple[str, ...]


def load_image_data(task: TaskConfig, owner: str = "", evaluate: bool = True) -> ImageData:
    """Read the data set of a task, and set evaluation examples apart.

    These are ``task.holdout`` examples of the training data if that is above 0, else the
    validation split, else the test split; the same ones for every seed. Images stay encoded.

    Args:
        task: Where the data is, and how much of it to use.
        owner: A further column to keep, for the natural partition; empty = none.
        evaluate: Whether evaluation examples are needed; if not, there are none but held out ones.

    Raises:
        ConfigError: If the data cannot be found or read, its columns do not fit, or an image
            that is used has no readable header.
    """
    splits = _read(task)
    training = training_split(
        task.dataset, splits, "the folder train (train/cat/1.png) or the file train.parquet"
    )
    if owner:
        check_owner_column(owner, training.column_names)
    image, label = _image_column(task, training), _label_column(task, training)
    used = {"train": training}
    if not task.holdout and evaluate:
        is_hidden = functools.partial(_is_hidden, label=label)
        split, found = evaluation_split(task.dataset, splits, is_hidden)
        _check_columns(split, found, (image, label))
        used[split] = found
    ids, names = _encode([data[label][:] for data in used.values()], training, label)
    parts = [
        _dataset(data, _origins(split, data[image]), image, owner, labels)
        for (split, data), labels in zip(used.items(), ids, strict=True)
    ]
    train, held = set_apart(parts, task.holdout)
    train = subsample(train, task.train_examples, "train")
    held = subsample(held, task.eval_examples, "evaluation")
    for part in (train, held):
        check_images(part["image"], part[ORIGIN])
    return ImageData(train, held, names)


def _read(task: TaskConfig) -> dict[str, Dataset]:
    if not task.dataset:
        raise ConfigError(
            "task.dataset is empty; task.name = 'image-classification' needs a folder with train/ "
            "and validation/ (a folder of images per class) or Parquet files, or a hub name"
        )
    folder = dataset_folder(task, "train*")
    found = load_hub_dataset(task) if folder is None else read_image_folder(folder)
    return {split: _encoded(data) for split, data in found.items()}


def _encoded(data: Dataset) -> Dataset:
    """Make bytes and paths of what the source declares as images: they are decoded on use."""
    from datasets import Image

    for column, feature in data.features.items():
        named = column in IMAGE_COLUMNS and getattr(feature, "dtype", "") in _BINARY
        packed = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if named or packed or isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _image_column(task: TaskConfig, data: Dataset) -> str:
    from datasets import Image

    found = [column for column, feature in data.features.items() if isinstance(feature, Image)]
    return _column(task, data, "image", found, IMAGE_COLUMNS)


def _label_column(task: TaskConfig, data: Dataset) -> str:
    from datasets import ClassLabel

    known = [column for column in LABEL_COLUMNS if column in data.column_names]
    declared = [column for column, feature in data.features.items() if type(feature) is ClassLabel]
    return _column(task, data, "label", known or declared, LABEL_COLUMNS)


def _column(
    task: TaskConfig, data: Dataset, kind: str, found: Sequence[str], known: Sequence[str]
) -> str:
    """Return the first known name that was found, or what was found if it is one column."""
    for column in known:
        if column in found:
            return column
    if len(found) == 1:
        return found[0]
    problem = f"several {kind} columns, {', '.join(found)}" if found else f"no {kind} column"
    columns = ", ".join(f"{name} ({_type_name(f)})" for name, f in data.features.items())
    raise ConfigError(
        f"task.dataset = {task.dataset!r} has {problem}; columns: {columns}; name it "
        f"{' or '.join(map(repr, known))}"
    )


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__.lower())


def _check_columns(split: str, data: Dataset, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in data.column_names]:
        raise ConfigError(
            f"the {split} split has no column {missing[0]!r}, which train has; its columns: "
            f"{', '.join(data.column_names)}"
        )


def _is_hidden(data: Dataset, label: str) -> bool:
    return label in data.column_names and hidden(data[label][:])


def _encode(
    labels: list[list[Any]], train: Dataset, column: str
) -> tuple[list[list[int]], tuple[str, ...]]:
    known = tuple(getattr(train.features[column], "names", None) or ())
    ids, names = encode_labels(labels, known, column, MAX_CLASSES)
    if not names:
        raise ConfigError(
            f"column {column!r} holds numbers with a fraction; task.name = 'image-classification' "
            "needs whole numbers or texts (classes)"
        )
    return ids, names


def _origins(split: str, images: Sequence[Any]) -> list[str]:
    """Return the file of each image, or its row where it lies in a table."""
    return [
        repr(image["path"])
        if image and image["bytes"] is None and image["path"]
        else f"row {number} of the {split} split"
        for number, image in enumerate(images, start=1)
    ]


def _dataset(
    data: Dataset, origins: list[str], image: str, owner: str, labels: list[int]
) -> Dataset:
    kept = data.select_columns(image)
    if image != "image":  # or the library refuses
        kept = kept.rename_column(image, "image")
    if owner in data.column_names and owner not in ("image", "label", ORIGIN):
        kept = kept.add_column(owner, data[owner][:])
    return kept.add_column("label", labels).add_column(ORIGIN, origins)
