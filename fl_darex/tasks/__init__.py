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

# Settings that one task alone has; elsewhere they would be passed over in silence.
_CAUSAL_LM_ALONE = ("max_new_tokens", "template", "packing", "test")


def load_task(config: RunConfig) -> Task:
    """Return the task that a configuration asks for, its data loaded and partitioned.

    What an own task makes of the settings in ``[task]`` is its own affair.

    Raises:
        ConfigError: If there is no such task, or a model, a dataset or a setting of the partition
            cannot be used.
    """
    name = config.task.name
    if name in TASKS and name != "causal-lm":
        _refuse_settings_of_causal_lm(config.task)
    where = f"fl_darex.tasks.{TASKS[name]}" if name in TASKS else name
    task: Any = load(where, "task.name")(config)
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.name = {name!r} gave {type(task).__name__!r}; it has to be a function from a "
            "RunConfig to a fl_darex.tasks.Task, as fl_darex.tasks.prepare returns it"
        )
    return task


def _refuse_settings_of_causal_lm(task: TaskConfig) -> None:
    default = TaskConfig()
    for field in _CAUSAL_LM_ALONE:
        if (value := getattr(task, field)) != getattr(default, field):
            key, shown = field.replace("_", "-"), str(value).lower()
            raise ConfigError(
                f"task.{key} = {shown} is for task.name = 'causal-lm' alone; leave it out with "
                f"task.name = {task.name!r}"
            )


__all__ = ["TASKS", "LoadedModel", "Task", "load_task", "prepare"]
