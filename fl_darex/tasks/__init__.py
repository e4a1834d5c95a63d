"""Models, datasets, partitions and metrics: what a run learns and how it is measured.

A task is a function from a configuration to a ``Task``. The package's own have a folder each and a
row in ``TASKS``; ``task.name = "package.module:function"`` is somebody's own, which brings its
model, its rows and its metric, and leaves the rest to ``prepare``. Its module has to be importable
where the run's processes start, for example by ``PYTHONPATH``.
"""

from __future__ import annotations

from typing import Any

from fl_darex.config import TASKS, RunConfig, TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.registry import load
from fl_darex.tasks.preparation import prepare
from fl_darex.tasks.task import LoadedModel, Task

_TEXT, _IMAGE, _CAUSAL = "text-classification", "image-classification", "causal-lm"
# Settings that some tasks alone have; elsewhere they would be passed over in silence.
_ONLY = {
    "text_columns": (_TEXT, _CAUSAL),
    "label_column": (_TEXT, _IMAGE),
    "max_new_tokens": (_CAUSAL,),
    "template": (_CAUSAL,),
    "packing": (_CAUSAL,),
    "test": (_CAUSAL,),
}


def load_task(config: RunConfig) -> Task:
    """Return the task that a configuration asks for, its data loaded and partitioned.

    What an own task makes of the settings in ``[task]`` is its own affair.

    Raises:
        ConfigError: If there is no such task, or a model, a dataset or a setting of the partition
            cannot be used.
    """
    name = config.task.name
    if name in TASKS:
        _refuse_settings_of_others(config.task)
    where = f"fl_darex.tasks.{TASKS[name]}" if name in TASKS else name
    task: Any = load(where, "task.name")(config)
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.name = {name!r} gave {type(task).__name__!r}; it has to be a function from a "
            "RunConfig to a fl_darex.tasks.Task, as fl_darex.tasks.prepare returns it"
        )
    return task


def _refuse_settings_of_others(task: TaskConfig) -> None:
    default = TaskConfig()
    for field, tasks in _ONLY.items():
        value = getattr(task, field)
        if task.name not in tasks and value != getattr(default, field):
            key = field.replace("_", "-")
            shown = repr(value) if "column" in field else str(value).lower()
            raise ConfigError(
                f"task.{key} = {shown} is for task.name = {' or '.join(map(repr, tasks))} alone; "
                f"leave it out with task.name = {task.name!r}"
            )


__all__ = ["TASKS", "LoadedModel", "Task", "load_task", "prepare"]
