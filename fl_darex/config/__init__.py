"""The configuration of a run: sections, ranges, text, and errors for people."""

from fl_darex.config.run import RunConfig, known_keys, load_config, make_config
from fl_darex.config.sections import (
    CompressConfig,
    FederationConfig,
    ResourcesConfig,
    Section,
    ServerConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = [
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
]
