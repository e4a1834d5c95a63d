"""A Ray that a test module starts, and grids find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray


@contextmanager
def own_ray(cores: int, *folders: Path, **things: Any) -> Iterator[None]:
    """Run a Ray whose workers import modules from folders, too; by default from the tests'.

    Args:
        cores: That Ray gives out, whatever the machine has; so it is with ``num_gpus``.
        folders: Those folders.
        things: What else ``ray.init`` is told, such as ``resources``.
    """
    found = folders or (Path(__file__).resolve().parent,)
    path = os.pathsep.join([*map(str, found), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",  # without it, whatever Ray runs here would be joined
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        **things,
    )
    try:
        yield
    finally:
        ray.shutdown()
