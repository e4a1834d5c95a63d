"""The configuration of a run: sections, ranges, text, and errors for people."""

from fl_darex.config.chosen import CompressConfig, ServerConfig
from fl_darex.config.resources import ResourcesConfig
from fl_darex.config.run import (
    OWN_NAMES,
    RunConfig,
    known_keys,
    load_config,
    make_config,
    read_file,
    read_overrides,
)
from fl_darex.config.sections import (
    TASKS,
    FederationConfig,
    Section,
    TaskConfig,
    TrainConfig,
)

__all__ = [
    "OWN_NAMES",
    "TASKS",
    "CompressConfig",
    "FederationConfig",
    "ResourcesConfig",
    "RunConfig",
    "Section",
    "ServerConfig",
    "TaskConfig",
    "TrainConfig",
    "known_keys",
    "load_config",
    "make_config",
    "read_file",
    "read_overrides",
]
