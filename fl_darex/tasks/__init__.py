"""Models, datasets, partitions and metrics: what a run learns and how it is measured.

A new task costs one module with a function from a configuration to a ``Task``, and one row in
``TASKS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from fl_darex.config import RunConfig, TaskConfig
from fl_darex.errors import ConfigError, nearest
from fl_darex.tasks.task import Task

# Name -> "module:function"; some need packages that digits does not, so modules load on use.
TASKS = {
    "digits": "fl_darex.tasks.digits:load_digits_task",
    "image-classification": "fl_darex.tasks.image:load_image_task",
    "text-classification": "fl_darex.tasks.text:load_text_task",
    "causal-lm": "fl_darex.tasks.causal:load_causal_task",
}
# Settings that one task alone has; elsewhere they would be passed over in silence.
_CAUSAL_LM_ALONE = ("max_new_tokens", "template", "packing", "test")


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
    if name != "causal-lm":
        _refuse_settings_of_causal_lm(config.task)
    module, _, function = TASKS[name].partition(":")
    loader: Callable[[RunConfig], Task] = getattr(importlib.import_module(module), function)
    return loader(config)


def _refuse_settings_of_causal_lm(task: TaskConfig) -> None:
    default = TaskConfig()
    for field in _CAUSAL_LM_ALONE:
        if (value := getattr(task, field)) != getattr(default, field):
            key, shown = field.replace("_", "-"), str(value).lower()
            raise ConfigError(
                f"task.{key} = {shown} is for task.name = 'causal-lm' alone; leave it out with "
                f"task.name = {task.name!r}"
            )


__all__ = ["TASKS", "Task", "load_task"]
