"""A Ray that a test module starts, and grids find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def own_ray(cores: int, *folders: Path) -> Iterator[None]:
    """Run a Ray whose workers import modules from folders, too; by default from the tests'."""
    found = folders or (Path(__file__).resolve().parent,)
    path = os.pathsep.join([*map(str, found), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",  # without it, whatever Ray runs here would be joined
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        yield
    finally:
        ray.shutdown()
