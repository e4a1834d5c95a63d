"""The configuration of a command: a file, settings changed on the command line, and the engine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fl_darex.config import RunConfig, known_keys, make_config, read_file, read_overrides
from fl_darex.config.idle import refuse_idle, remarks_on_idle

ABOUT = """\
CONFIG is a TOML file with the settings of a run; those that it leaves out take their defaults.
After it come OVERRIDES: settings to change for this time, each as SECTION.KEY=VALUE. An example:

\b
  fl-darex {command} configs/quickstart.toml compress.p=0.999 federation.rounds=5

A setting that does nothing in this run, such as train.delta-decay with train.optimizer=adamw, is
refused as an override, and named where it stands in the file."""
"""What ``--help`` says of the two arguments."""


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", hidden=True)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[OVERRIDES]...", hidden=True)]
"""Hidden from a list of their own: some versions of Typer leave that list empty."""


class Engine(StrEnum):
    """What runs the clients: Ray, Flower's engine, or this process, one after the other."""

    ray = "ray"
    flower = "flower"
    local = "local"


def read_settings(
    path: Path, overrides: Sequence[str], engine: Engine
) -> tuple[RunConfig, list[str]]:
    """Return a run's configuration, and a line for each setting of the file that does nothing.

    Raises:
        ConfigError: If something is wrong, or an override does nothing.
    """
    file, changed = read_file(path), read_overrides(overrides)
    config = make_config(file | changed)
    refuse_idle(config, changed, engine)
    defaults = RunConfig().flat()
    # A run folder's config.toml says every key: those that nobody changed are no news.
    complete = set(known_keys()) <= set(file)
    said = [key for key, value in file.items() if not complete or value != defaults.get(key)]
    return config, remarks_on_idle(config, said, engine)


class _StderrNow:
    """Writes to what ``sys.stderr`` is at the moment: live lines put themselves below it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def quiet() -> None:
    """Leave the terminal to our own display; warnings of Flower and of our own still show."""
    logger = logging.getLogger("flwr")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        # In a file they stay apart from what the display writes.
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            if sys.stderr.isatty():
                handler.setStream(_StderrNow())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
