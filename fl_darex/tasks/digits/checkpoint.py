"""A model checkpoint from JSON text back to a folder that ``from_pretrained`` loads.

A Flower bundle carries text files only, no ``.safetensors``. So the weights that this package
ships are stored as base64 in JSON, in a bundle, a wheel and a checkout alike, and are unpacked
into a cache folder where they are needed.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import tempfile
from pathlib import Path

from fl_darex.errors import ConfigError
from fl_darex.files.atomic import cache_root, write_atomically

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def unpack(text: str) -> bytes:
    """Return the safetensors file in a JSON text, its SHA-256 and its base64 in short lines.

    Raises:
        ConfigError: If the text is damaged, so that its SHA-256 does not match.
    """
    try:
        content = json.loads(text)
        weights = base64.b64decode("".join(content["base64"]), validate=True)
        intact = hashlib.sha256(weights).hexdigest() == content["sha256"]
    except (KeyError, TypeError, ValueError, binascii.Error):
        intact = False
    if not intact:
        raise ConfigError("the packaged checkpoint is damaged; install fl-darex again")
    return weights


def materialise(packed: Path) -> Path:
    """Unpack a packed checkpoint folder and return a real one with the same content.

    The result lies in the cache under a name made from the content, so two versions of the
    package never mix. It is checked on each call and repaired where a file is missing or
    damaged; any number of processes may do so at once. Where the cache cannot be written, a
    temporary folder that lives as long as the process takes its place.

    Args:
        packed: A folder with ``config.json`` and ``model.safetensors.json``.

    Raises:
        ConfigError: If the packed files are missing or damaged.
    """
    try:
        config = (packed / CONFIG).read_bytes()
        weights = unpack((packed / f"{WEIGHTS}.json").read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"the packaged checkpoint {packed.name!r} cannot be read; install fl-darex again"
        ) from None
    files = {CONFIG: config, WEIGHTS: weights}
    name = f"{packed.name}-{hashlib.sha256(config + weights).hexdigest()[:16]}"
    try:
        return _write_all(cache_root() / name, files)
    except OSError:
        return _write_all(Path(_process_folder().name) / name, files)


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fl-darex-")


def _write_all(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, [content])
    return folder
