"""TensorBoard, MLflow, Weights & Biases and trackio: each is loaded when a run is recorded in it.

Where they keep things, and under whose name, is what their own variables say
(``MLFLOW_TRACKING_URI``, ``WANDB_PROJECT``, ``WANDB_MODE``, ``TRACKIO_DIR``, ...).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fl_darex.errors import ConfigError
from fl_darex.observers.tracker import Numbers, Tracker, Values

_PROJECT = "fl-darex"


class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir runs`` shows all of them.

    Args:
        folder: Of the run; the files lie in ``tensorboard`` below it.
        settings: Of the run.
    """

    def __init__(self, folder: Path, settings: Values) -> None:
        writing: Any = import_module("torch.utils.tensorboard")
        self._writer = writing.SummaryWriter(folder / "tensorboard")
        experiment, begun, self._finished = writing.summary.hparams(dict(settings), {})
        for part in (experiment, begun):
            self._writer.file_writer.add_summary(part)
        self._text("settings", settings)

    def log(self, numbers: Numbers, step: int) -> None:
        """See `Recording.log`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, status: str, reason: str, summary: Values) -> None:
        """See `Recording.end`."""
        self._text("summary", {"status": status, "reason": reason, **summary})
        if status == "finished":  # that is all that its tables of settings know
            self._writer.file_writer.add_summary(self._finished)
        self._writer.close()

    def _text(self, tag: str, values: Values) -> None:
        rows = [f"| {name} | {value} |" for name, value in values.items()]
        self._writer.add_text(tag, "\n".join(["| | |", "|---|---|", *rows]))


class MLflow:
    """A run in the experiment that ``MLFLOW_EXPERIMENT_NAME`` says, or ``fl-darex``.

    Args:
        folder: Of the run, whose name it takes.
        settings: Of the run.
    """

    def __init__(self, folder: Path, settings: Values) -> None:
        from mlflow import MlflowClient  # its functions keep a run for each thread
        from mlflow.entities import Metric, Param, RunTag

        self._client, self._metric, self._tag = MlflowClient(), Metric, RunTag
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in settings.items()]
        self._client.log_batch(
            self._run, params=parameters, tags=[RunTag("folder", str(folder.resolve()))]
        )

    def log(self, numbers: Numbers, step: int) -> None:
        """See `Recording.log`."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: str, reason: str, summary: Values) -> None:
        """See `Recording.end`."""
        tags = [self._tag("status", status), self._tag("reason", reason)]
        tags += [self._tag(f"summary.{name}", str(value)) for name, value in summary.items()]
        self._client.log_batch(self._run, tags=tags)
        ends = {"finished": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._run, ends.get(status, "FAILED"))


class Wandb:
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it in the run's folder.

    Args:
        folder: Of the run, whose name it takes.
        settings: Of the run.
    """

    def __init__(self, folder: Path, settings: Values) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run: Any = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off"),  # each drawing of the live lines would be kept
        )

    def log(self, numbers: Numbers, step: int) -> None:
        """See `Recording.log`."""
        self._run.log(dict(numbers), step=step)

    def end(self, status: str, reason: str, summary: Values) -> None:
        """See `Recording.end`."""
        self._run.summary.update({"status": status, "reason": reason, **summary})
        self._run.finish(exit_code=0 if status == "finished" else 1)


class Trackio:
    """The local twin of `Wandb`: ``trackio show`` opens what it keeps, without an account.

    It has no summaries: the last row has the numbers of ours, and how the run ended.

    Args:
        folder: Of the run, whose name it takes.
        settings: Of the run.
    """

    def __init__(self, folder: Path, settings: Values) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=_PROJECT, name=folder.name, config=dict(settings), embed=False
        )
        self._step = 0

    def log(self, numbers: Numbers, step: int) -> None:
        """See `Recording.log`."""
        self._step = step
        self._run.log(dict(numbers), step=step)

    def end(self, status: str, reason: str, summary: Values) -> None:
        """See `Recording.end`."""
        ended = {"status": status, "reason": reason}
        ended |= {f"summary/{name}": value for name, value in summary.items()}
        self._run.log(ended, step=self._step)
        self._run.finish()


TRACKERS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""By the name of the package that each needs."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise `ConfigError` if a tracker is not known or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"tracker {name!r} is not known; known: {', '.join(TRACKERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, as wandb leaves behind
            raise ConfigError(
                f"tracker {name!r} is not installed; pip install {name}, or 'fl-darex[{name}]'"
            )
        if name == "wandb":
            _check_login()


def tracker(name: str, folder: Path) -> Tracker:
    """Return an observer for a run, by the tracker's name.

    Args:
        name: One of `TRACKERS`.
        folder: Of the run.

    Raises:
        ConfigError: If the tracker is not known or not installed.
    """
    check_trackers([name])
    return Tracker(name, lambda settings: TRACKERS[name](folder, settings))


def _check_login() -> None:
    """Refuse a W&B that would ask for a key, in mid run and on a terminal that shows the run."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "tracker 'wandb' has no API key; run: wandb login, set WANDB_API_KEY, or keep runs "
            "on this machine with WANDB_MODE=offline"
        )
