"""Images in a local folder: one folder per class, or Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fl_darex.errors import ConfigError
from fl_darex.tasks.sources import first_line

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# A split's names on disk; the first is the one that messages and the rest of the code use.
_SPLITS = (("train",), ("validation", "val", "valid"), ("test",))


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
    splits: dict[str, Dataset] = {}
    for names in _SPLITS:
        found = [source for name in names for source in _sources(folder, name)]
        if len(found) > 1:
            both = " and ".join(name for name, _ in found)
            raise ConfigError(f"task.dataset = {str(folder)!r} holds {both}; keep one of them")
        if found:
            splits[names[0]] = found[0][1]()
    _check_classes(splits)
    return splits


def _sources(folder: Path, name: str) -> list[tuple[str, Callable[[], Dataset]]]:
    found: list[tuple[str, Callable[[], Dataset]]] = []
    if (folder / name).is_dir():
        found.append((f"{name}/", lambda: read_class_folders(folder / name)))
    single, parts = folder / f"{name}.parquet", sorted(folder.glob(f"{name}-*-of-*.parquet"))
    if single.is_file():
        found.append((single.name, lambda: read_parquet([single])))
    if parts:
        found.append((parts[0].name, lambda: read_parquet(parts)))
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


def read_parquet(paths: list[Path]) -> Dataset:
    """Return the rows of Parquet files, as parts of one table.

    Raises:
        ConfigError: If one cannot be read, their columns differ, or there is no row.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    tables = []
    for path in paths:
        try:
            tables.append(pyarrow.parquet.read_table(path))
            whole = Dataset(pyarrow.concat_tables(tables))
        except (pyarrow.ArrowException, ValueError) as error:
            reason = first_line(error)
            raise ConfigError(f"{str(path)!r} is not a fitting Parquet file: {reason}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if len(whole) == 0:
        raise ConfigError(f"{str(paths[0])!r} holds no example")
    return whole


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
