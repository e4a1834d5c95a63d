"""Images and classes, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fl_darex.config import RunConfig, TaskConfig
from fl_darex.errors import ConfigError, nearest
from fl_darex.tasks.image.files import read_image_folder
from fl_darex.tasks.labels import Encoded, Labels, encode_labels
from fl_darex.tasks.preparation import choose_splits, owner_column
from fl_darex.tasks.sources import load_splits

if TYPE_CHECKING:
    from datasets import Dataset

# What well-known data sets call these columns; the first that is there counts.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
ORIGIN = "image-origin"
"""The column that says where an image comes from, for messages."""
MAX_CLASSES = 100_000
_BINARY = ("binary", "large_binary")


def load_image_data(config: RunConfig) -> tuple[dict[str, Dataset], Encoded]:
    """Read the data set of a task: all rows of the splits that play a part, images encoded.

    Returns:
        Rows by the part that they play, with columns ``image`` (bytes or a path), ``ORIGIN`` and,
        where one is set, the owner's column; and the labels of each part.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    task, owner = config.task, owner_column(config)
    needs = "a folder with train/ and validation/ (a folder of images per class) or Parquet files"
    found = load_splits(task, needs, "train*", read_image_folder, lambda data: data)
    found = {split: _encoded(data) for split, data in found.items()}
    image, label = _columns(task, found["train"]) if "train" in found else ("", "")
    hint = "the folder train (train/cat/1.png) or the file train.parquet"
    chosen = choose_splits(config, found, hint, label)
    for split in chosen.values():
        columns = found[split].column_names
        if missing := [column for column in (image, label) if column not in columns]:
            raise ConfigError(
                f"the {split} split has no column {missing[0]!r}, which train has; its columns: "
                f"{', '.join(columns)}"
            )
    origins = {part: _origins(split, found[split][image]) for part, split in chosen.items()}
    labels = [
        Labels(found[split][label][:], origins[part].__getitem__) for part, split in chosen.items()
    ]
    parts = {
        part: _dataset(found[split], origins[part], image, owner) for part, split in chosen.items()
    }
    return parts, _encode(labels, found["train"], label)


def _encoded(data: Dataset) -> Dataset:
    """Make bytes and paths of what the source declares as images: they are decoded on use."""
    from datasets import Image

    for column, feature in data.features.items():
        named = column in IMAGE_COLUMNS and getattr(feature, "dtype", "") in _BINARY
        packed = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if named or packed or isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _columns(task: TaskConfig, data: Dataset) -> tuple[str, str]:
    """Return the columns of images and of labels."""
    from datasets import ClassLabel, Image

    features = data.features.items()
    images = [column for column, feature in features if isinstance(feature, Image)]
    known = [column for column in LABEL_COLUMNS if column in data.column_names]
    labels = known or [column for column, feature in features if type(feature) is ClassLabel]
    if named := task.label_column:
        if named not in data.column_names:
            raise ConfigError(
                f"task.label-column = {named!r}: the train data have no column {named!r}; columns: "
                f"{', '.join(data.column_names)}{nearest(named, data.column_names)}"
            )
        labels = [named]
    return (
        _column(task, data, "image", images, IMAGE_COLUMNS),
        _column(task, data, "label", labels, LABEL_COLUMNS),
    )


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


def _encode(labels: list[Labels], train: Dataset, column: str) -> Encoded:
    known = tuple(getattr(train.features[column], "names", None) or ())
    found = encode_labels(labels, known, column, MAX_CLASSES)
    if not found.names:
        raise ConfigError(
            f"column {column!r} holds numbers with a fraction; task.name = 'image-classification' "
            "needs whole numbers or texts (classes)"
        )
    return found


def _origins(split: str, images: Sequence[Any]) -> list[str]:
    """Return the file of each image, or its row where it lies in a table."""
    return [
        repr(image["path"])
        if image and image["bytes"] is None and image["path"]
        else f"row {number} of the {split} split"
        for number, image in enumerate(images, start=1)
    ]


def _dataset(data: Dataset, origins: list[str], image: str, owner: str) -> Dataset:
    kept = data.select_columns(image)
    if image != "image":  # or the library refuses
        kept = kept.rename_column(image, "image")
    if owner in data.column_names and owner not in ("image", "label", ORIGIN):
        kept = kept.add_column(owner, data[owner][:])
    return kept.add_column(ORIGIN, origins)
