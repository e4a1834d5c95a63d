"""The run's configuration on its way to the clients: in the message, not on the node.

Flower's public simulation entry carries no run configuration, and nodes of a deployment may
have been set up long before the run; so the server sends what differs from the defaults.
"""

from __future__ import annotations

import json

from flwr.app import ConfigRecord, Context, Message

from fl_darex.config import RunConfig, make_config

SETTINGS_KEY = "fl-darex.settings"
DATASET_KEY = "dataset-path"
"""Key in a node's own configuration that overrides task.dataset."""


def settings_record(config: RunConfig) -> ConfigRecord:
    """Return a ConfigRecord with the settings that differ from the defaults, as JSON."""
    defaults = RunConfig().flat()
    changed = {key: value for key, value in config.flat().items() if value != defaults[key]}
    return ConfigRecord({SETTINGS_KEY: json.dumps(changed, separators=(",", ":"))})


def settings_of(message: Message, context: Context) -> RunConfig:
    """Return the run's configuration from a message; the node's dataset path wins."""
    for record in message.content.config_records.values():
        if isinstance(text := record.get(SETTINGS_KEY), str):
            values = json.loads(text)
            if path := context.node_config.get(DATASET_KEY):
                values["task.dataset"] = path
            return make_config(values)
    return make_config(context.run_config)
