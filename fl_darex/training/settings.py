"""The run's configuration on its way to the clients: in the message, not on the node.

Flower's public simulation entry carries no run configuration, and nodes of a deployment may
have been set up long before the run; so the server sends what differs from the defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message

from fl_darex.config import OWN_NAMES, RunConfig, make_config
from fl_darex.errors import ConfigError
from fl_darex.rescaling.rules import SERVER_RULES

SETTINGS_KEY = "fl-darex.settings"
LABELS_KEY = "fl-darex.labels"
DATASET_KEY = "dataset-path"
"""Key in a SuperNode's ``--node-config``: a folder on that machine with the node's own data."""


def settings_record(config: RunConfig, labels: Sequence[str] = ()) -> ConfigRecord:
    """Return a ConfigRecord with the settings that differ from the defaults, as JSON.

    Args:
        config: The run's configuration.
        labels: The classes' names where the data have some, so that nodes with data of their
            own can tell whether theirs are the same.
    """
    defaults = RunConfig().flat()
    changed = {key: value for key, value in config.flat().items() if value != defaults.get(key)}
    record = ConfigRecord({SETTINGS_KEY: json.dumps(changed, separators=(",", ":"))})
    if labels:
        record[LABELS_KEY] = _digest(labels)
    return record


def settings_of(message: Message, context: Context) -> RunConfig:
    """Return the configuration of the run for this node.

    A SuperNode that was started with ``--node-config 'dataset-path="/data/x"'`` has data of its
    own, in a folder that is laid out as ``task.dataset``: all rows of its training split are the
    node's partition. Nothing of them is shared out, held out or left away: ``federation.clients``
    and ``federation.partition``, ``task.holdout``, ``task.train-examples``, ``task.eval-examples``,
    ``task.tuning-examples`` and the server's validation examples are of no account. An evaluation
    split is needed only where clients evaluate, and is then evaluated in full. ``task.subset``
    names a folder in it if there is one.

    What the settings name as ``"package.module:name"`` is imported. In a deployment a message alone
    must not decide that: where Flower gave the node a run configuration, it has to say the same.
    Simulations have none; their server and clients are one program.

    Raises:
        ConfigError: If the settings are not understood, or name code that the run configuration
            does not, or the path is no absolute path of a folder.
    """
    config = run_settings(message, context)
    return _with_own_data(config, context) if has_own_data(context) else config


def run_settings(message: Message, context: Context) -> RunConfig:
    """Return the configuration of the run as its server has it.

    Raises:
        ConfigError: As of `settings_of`, but for data of the node's own.
    """
    values = dict(context.run_config)
    if (text := _text(message, SETTINGS_KEY)) is not None:
        values = json.loads(text)
        if context.run_config:
            _check_own_names(values, context.run_config)
    return make_config(values)


def has_own_data(context: Context) -> bool:
    """Return whether this node was started with a folder of its own data."""
    return DATASET_KEY in context.node_config


def check_labels(message: Message, context: Context, found: Sequence[str]) -> None:
    """Refuse data of a node whose classes are not the run's: its labels would mean others.

    Args:
        message: From the server.
        context: The node's.
        found: The classes of the node's data, in order.

    Raises:
        ConfigError: If they differ.
    """
    wanted = _text(message, LABELS_KEY)
    if wanted is None or not has_own_data(context) or wanted == _digest(found):
        return
    names = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise ConfigError(
        f"{DATASET_KEY} = {context.node_config[DATASET_KEY]!r} of this SuperNode has the classes "
        f"{names or 'of a regression'}, which are not those of the run; the training data of "
        "every node must have all classes of the run, under the same names"
    )


def _check_own_names(values: Mapping[str, object], run: Mapping[str, object]) -> None:
    for key in OWN_NAMES:
        name = values.get(key)
        if isinstance(name, str) and ":" in name and name != run.get(key):
            raise ConfigError(
                f"the server's message names {key} = {name!r}, which would be imported here, and "
                f"the run configuration of this node says {run.get(key)!r}; a run that needs it "
                "names it in [tool.flwr.app.config] of its app"
            )


def _text(message: Message, key: str) -> str | None:
    for record in message.content.config_records.values():
        if isinstance(text := record.get(key), str):
            return text
    return None


def _with_own_data(config: RunConfig, context: Context) -> RunConfig:
    path = context.node_config[DATASET_KEY]
    if not isinstance(path, str) or not Path(path).is_absolute() or not Path(path).is_dir():
        raise ConfigError(
            f"{DATASET_KEY} = {path!r} of this SuperNode: no such folder; give the absolute path "
            "of a folder on the SuperNode's machine, in quotes: "
            f"--node-config '{DATASET_KEY}=\"/data/x\"'"
        )
    changed = config.flat() | {
        "task.dataset": path,
        "task.holdout": 0,
        "task.train-examples": 0,
        "task.eval-examples": 0,
        "task.tuning-examples": 0,
        "task.test": False,
        "federation.clients": 1,
        "federation.clients-per-round": 0,
        "federation.partition": "iid",
        "federation.evaluate": "clients" if config.federation.evaluate == "clients" else "none",
    }
    if config.compress.q in SERVER_RULES:  # the server's own affair
        changed["compress.q"] = "dare"
    return make_config(changed)


def _digest(labels: Sequence[str]) -> str:
    # Names would ride in every message; there may be a thousand.
    return hashlib.blake2b(json.dumps(list(labels)).encode(), digest_size=8).hexdigest()
