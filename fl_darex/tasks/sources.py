"""Models and data sets from a local folder or the Hugging Face hub, and clear refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.quiet import quiet

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def local_folder(key: str, value: str) -> Path | None:
    """Return the folder that a setting names, or None where it is a name on the hub.

    An existing folder is a folder. What does not exist is a hub name if it looks like ``name``
    or ``owner/name``, and a missing folder if it does not.

    Args:
        key: The setting's key, for messages: ``"task.model"``.
        value: Its value, not empty.

    Raises:
        ConfigError: If the folder does not exist, or is a file.
    """
    path = Path(value).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{key} = {value!r} is a file; give the folder that holds it")
    if _HUB_NAME.fullmatch(value):
        return None
    raise ConfigError(
        f"{key} = {value!r}: no such folder; give an existing folder, or a hub name like "
        "'owner/name'"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def dataset_folder(task: TaskConfig, pattern: str) -> Path | None:
    """Return the folder with a task's data, or None where ``task.dataset`` is a hub name.

    ``task.subset`` names a folder in it; where that does not exist, the data may lie in the
    folder itself.

    Args:
        task: Where the data is.
        pattern: What a folder with data holds, as a glob pattern: ``"train.*"``.

    Raises:
        ConfigError: If there is no such folder, or no such subset.
    """
    folder = local_folder("task.dataset", task.dataset)
    if folder is None or not task.subset:
        return folder
    if (folder / task.subset).is_dir():
        return folder / task.subset
    if any(folder.glob(pattern)):
        return folder
    raise ConfigError(
        f"task.subset = {task.subset!r}: no such folder in task.dataset = {task.dataset!r}, "
        "and no train file lies there itself"
    )


def load_hub_dataset(task: TaskConfig) -> dict[str, Dataset]:
    """Return the splits of a data set on the hub.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    import datasets

    with quiet():
        try:
            found = datasets.load_dataset(task.dataset, task.subset or None)
        except Exception as error:
            # Hub, network, scripts and formats: the library raises what its parts raise.
            raise ConfigError(
                f"task.dataset = {task.dataset!r} with task.subset = {task.subset!r}: no such "
                f"folder, and not loaded from the hub: {first_line(error)}"
            ) from None
    return {str(split): data for split, data in found.items()}
