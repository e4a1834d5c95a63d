"""Images in a local folder: one folder per class, or Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fl_darex.errors import ConfigError
from fl_darex.tasks.sources import Source, read_parquet, read_splits

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read_image_folder(folder: Path) -> dict[str, Dataset]:
    """Return the images of a folder by split: ``train``, ``validation``, ``test``.

    A split is a folder with a folder for each class (``train/cat/1.png``, at any depth below the
    class; files that are no images are passed over), a Parquet file (``train.parquet``), or
    several (``train-00000-of-00002.parquet``). ``val`` and ``valid`` mean validation. Images of
    folders are read when they are used, Parquet files are held in memory.

    Raises:
        ConfigError: If a split is there twice, cannot be read, holds no image, or has a class
            that train does not have.
    """
    splits = read_splits(folder, _sources, validation=("val", "valid"))
    _check_classes(splits)
    return splits


def _sources(folder: Path, name: str) -> list[Source[Dataset]]:
    found: list[Source[Dataset]] = []
    if (folder / name).is_dir():
        found.append((f"{name}/", lambda: read_class_folders(folder / name)))
    kind = "a fitting Parquet file"
    single, parts = folder / f"{name}.parquet", sorted(folder.glob(f"{name}-*-of-*.parquet"))
    if single.is_file():
        found.append((single.name, lambda: read_parquet([single], kind)))
    if parts:
        found.append((parts[0].name, lambda: read_parquet(parts, kind)))
    return found


def read_class_folders(folder: Path) -> Dataset:
    """Return columns ``image`` (paths) and ``label`` (names of folders), in alphabetical order.

    Images that lie in no folder of a class have None as label.

    Raises:
        ConfigError: If the folder or one of its classes holds no image.
    """
    from datasets import Dataset, Features, Image, Value

    classes = sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path))
    rows: list[tuple[str, str | None]] = []
    for one in classes:
        files = [path for path in one.rglob("*") if _is_image(path)]
        if not files:
            raise ConfigError(f"{str(one)!r} holds no image; known: {', '.join(SUFFIXES)}")
        rows += [(str(path), one.name) for path in sorted(files)]
    if not classes:
        rows = [(str(path), None) for path in sorted(folder.iterdir()) if _is_image(path)]
    if not rows:
        raise ConfigError(
            f"{str(folder)!r} holds no image; expected a folder for each class, such as "
            f"{folder.name}/cat/1.png"
        )
    paths, labels = zip(*rows, strict=True)
    features = Features({"image": Image(decode=False), "label": Value("string")})
    return Dataset.from_dict({"image": list(paths), "label": list(labels)}, features=features)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and _visible(path) and path.is_file()


def _check_classes(splits: dict[str, Dataset]) -> None:
    # A misspelt folder would else be a class of its own, which nobody learns.
    known = _class_names(splits["train"]) if "train" in splits else set()
    for name, data in splits.items():
        if known and (unknown := _class_names(data) - known):
            raise ConfigError(
                f"the {name} split has class {min(unknown)!r}, which train does not have; classes "
                f"of train: {', '.join(sorted(known))}"
            )


def _class_names(data: Dataset) -> set[str]:
    """Return the labels that are texts; none where labels are numbers or missing."""
    named = getattr(data.features.get("label"), "dtype", "") == "string"
    return set(data.unique("label")) - {None} if named else set()
