"""No progress bars and loading reports from transformers and datasets for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Silence these libraries and the hub below errors; put their settings back afterwards."""
    import datasets
    import huggingface_hub.utils.logging as hub_logging
    from transformers.utils import logging

    transformers_logging: Any = logging  # its switches have no types
    libraries: list[Any] = [datasets.logging, hub_logging, transformers_logging]
    levels = [library.get_verbosity() for library in libraries]
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    datasets_bars = not datasets.are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if transformers_bars:
            transformers_logging.enable_progress_bar()
        if datasets_bars:
            datasets.enable_progress_bars()
