"""Models, datasets, partitions and metrics: what a run learns and how it is measured.

A new task costs one module with a function from a configuration to a ``Task``, and one row in
``TASKS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError, nearest

from .task import Task

# Name -> "module:function"; some need packages that digits does not, so modules load on use.
TASKS = {
    "digits": "fl_darex.tasks.digits:load_digits_task",
    "image-classification": "fl_darex.tasks.image:load_image_task",
    "text-classification": "fl_darex.tasks.text:load_text_task",
}


def load_task(config: RunConfig) -> Task:
    """Return the task that a configuration asks for, its data loaded and partitioned.

    Raises:
        ConfigError: If a model, a dataset or a setting of the partition cannot be used.
    """
    name = config.task.name
    if name not in TASKS:
        raise ConfigError(
            f"task.name = {name!r} is not a task; known: {', '.join(TASKS)}{nearest(name, TASKS)}"
        )
    module, _, function = TASKS[name].partition(":")
    loader: Callable[[RunConfig], Task] = getattr(importlib.import_module(module), function)
    return loader(config)


__all__ = ["TASKS", "Task", "load_task"]
