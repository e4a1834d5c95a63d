"""A model's folder, as ``from_pretrained`` takes it: its tensors, and small files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from pathlib import Path

from fl_darex.errors import ConfigError
from fl_darex.files.formats import StoredTensor
from fl_darex.files.tensors import open_tensors

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".spm")
"""Of files that go with a model: configuration, tokenizer, processor, card; no code, no pickles."""

MOST_BYTES = 64 << 20
"""Of all such files of a model together."""

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LEFT = {*_INDICES, "trainer_state.json"}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        place: Its folder, or its one file.
        tensors: Each by its name, read when it is asked for.
        files: Small files that go with it, by their paths inside its folder.
        weights: What the file of its tensors is called.
        remarks: What a person should know, a line each.
    """

    place: Path
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, Path] = field(default_factory=dict)
    weights: str = MODEL
    remarks: tuple[str, ...] = ()


def open_checkpoint(path: str | PathLike[str], *, adapter: bool = False) -> Checkpoint:
    """Open a model's folder; no tensor is read yet.

    Args:
        path: A folder as ``save_pretrained`` leaves it, with ``.safetensors`` or ``.bin`` files, in
            shards or not; or one such file.
        adapter: Whether the folder's adapter is meant, and not its model.

    Raises:
        ConfigError: If there is none, or it cannot be read.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ConfigError(
            f"there is no file or folder {str(place)!r}; name a folder that save_pretrained wrote "
            "(a model of the hub has to be fetched first)"
        )
    held = _adapter_file(place) if place.is_dir() else None
    if adapter and held is None:
        raise ConfigError(f"{str(place)!r} has no {ADAPTER}; name a folder that peft wrote")
    source = held if adapter and held else _model(place)
    if source is None:
        raise ConfigError(
            f"{str(place)!r} holds an adapter and no model; give --adapter to take the adapter"
            if held
            else f"no .safetensors or pytorch_model*.bin file lies in {str(place)!r}"
        )
    tensors = open_tensors(source, torch_files=True).data
    files = dict(_small_files(place)) if place.is_dir() else {}
    if not adapter:  # whoever loads the folder would take it for an adapter's
        files = {path: file for path, file in files.items() if file.name != ADAPTER_CONFIG}
    return Checkpoint(place, tensors, files, ADAPTER if adapter else MODEL)


def has_adapter(path: str | PathLike[str]) -> bool:
    """Return whether a folder holds an adapter."""
    return _adapter_file(Path(path).expanduser()) is not None


def is_small_file(path: str) -> bool:
    """Return whether a path, from anybody, is one that a model's small file can have."""
    parts = path.split("/")
    plain = all(part and not part.startswith(".") for part in parts) and len(parts) < 3
    odd = any(char in path for char in '\\:*?"<>|') or not path.isprintable()
    known = path.endswith(SUFFIXES) and parts[-1] not in _LEFT
    return plain and not odd and known and len(path) < 200


def digest_of(content: bytes) -> str:
    """Return 32 hexadecimal digits that stand for a file's content."""
    return blake2b(content, digest_size=16).hexdigest()


def says_the_same(path: str, one: bytes, other: bytes) -> bool:
    """Return whether two files have the same content, or are JSON that says the same."""
    if one == other or not path.endswith(".json"):
        return one == other
    try:
        first, second = (json.dumps(json.loads(text), sort_keys=True) for text in (one, other))
    except (ValueError, RecursionError):
        return False
    return first == second


def _small_files(folder: Path) -> Iterator[tuple[str, Path]]:
    inside = [*folder.glob("*"), *folder.glob("*/*")]
    for file in sorted(path for path in inside if path.is_file()):
        path = file.relative_to(folder)
        if is_small_file(path.as_posix()) and not path.parts[0].startswith("checkpoint-"):
            yield path.as_posix(), file


def _adapter_file(folder: Path) -> Path | None:
    found = [folder / ADAPTER, folder / "adapter_model.bin"]
    return next((path for path in found if path.is_file()), None)


def _model(place: Path) -> Path | None:
    """Return what holds a model's tensors: a file, or a folder of shards.

    Raises:
        ConfigError: If shards without an index, or of torch, lie beside an adapter.
    """
    if not place.is_dir() or (place / _INDICES[0]).is_file():
        return place
    if (place / MODEL).is_file():
        return place / MODEL
    patterns = "*.safetensors", "pytorch_model*.bin"
    found = {path.name for pattern in patterns for path in place.glob(pattern)}
    if found - {ADAPTER} and ADAPTER in found:
        raise ConfigError(
            f"{str(place)!r} holds {ADAPTER} beside {min(found - {ADAPTER})!r}; name a folder "
            "with one of the two"
        )
    return place if found - {ADAPTER} else None
