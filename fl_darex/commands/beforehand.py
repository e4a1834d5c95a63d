"""What can be known before anything is started, and is refused then."""

from __future__ import annotations

import os
from logging import WARNING
from typing import TYPE_CHECKING

from flwr.common.logger import log

from fl_darex.config import TASKS, ResourcesConfig, TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.rescaling.rules import RULES

if TYPE_CHECKING:
    from fl_darex.training.session import Session


def check_machine(resources: ResourcesConfig) -> None:
    """Refuse a client that is larger than this machine; a cluster's nodes are asked later.

    Raises:
        ConfigError: If a client asks for more cores or GPUs than there are.
    """
    if resources.ray_address:
        return
    cores = os.cpu_count() or 1
    for own in (resources.for_all, *(own for _, own in resources.by_class)):
        if own["num_cpus"] > cores:
            raise ConfigError(
                f"resources.num-cpus = {own['num_cpus']:g}, but this machine has {cores} cores; "
                f"allowed here: up to {cores}"
            )
        if own["num_gpus"] != 0:
            _check_gpus(own["num_gpus"])


def _check_gpus(asked: float | str) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if (1 if asked == "auto" else float(asked)) > gpus:
        shown = repr(asked) if asked == "auto" else f"{asked:g}"
        raise ConfigError(
            f"resources.num-gpus = {shown}, but torch finds {gpus} GPUs on this "
            f"machine; allowed here: 0 to {gpus}"
        )


def check_folders(task: TaskConfig) -> None:
    """Refuse a model or data whose folder is not there, before the hub is asked for the other one.

    What an own task makes of the two is its own affair, and digits brings its own.

    Raises:
        ConfigError: If a value that can only be a folder is none.
    """
    from fl_darex.tasks.sources import local_folder  # with torch, which --help does without

    if task.name in TASKS and task.name != "digits":
        for key, value in (("task.model", task.model), ("task.dataset", task.dataset)):
            if value:
                local_folder(key, value)


def check_calibration(session: Session) -> None:
    """Refuse more calibration examples than a client can set apart; say where it has fewer.

    Raises:
        ConfigError: If a client would have nothing left to train on.
    """
    config = session.config
    asked, held = config.compress.calibration_examples, config.compress.holds_out
    if not held and config.compress.q not in RULES and config.compress.method != "wanda":
        return
    partitions = session.task.partitions
    sizes = [len(partitions.indices(client)) for client in range(config.federation.clients)]
    least = min(sizes)
    if held and asked >= least:
        raise ConfigError(
            f"compress.calibration-examples = {asked} leaves client {sizes.index(least)} nothing "
            f"of its {least} examples to train on; allowed here: 1 to {least - 1}"
            if least > 1
            else f"compress.q = {config.compress.q!r} needs examples that a client does not train "
            f"on, and client {sizes.index(least)} has 1; use fewer clients or another q"
        )
    if asked > least:
        log(
            WARNING,
            "compress.calibration-examples = %d: %d clients have fewer and use all they have, "
            "client %d the fewest, %d",
            asked,
            sum(size < asked for size in sizes),
            sizes.index(least),
            least,
        )
