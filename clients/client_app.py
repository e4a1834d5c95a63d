"""The ClientApp of this repository: fine-tune locally, send a packet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fl_darex.errors import ConfigError
from fl_darex.flower.ledger import ROUND_KEY
from fl_darex.flower.records import to_record, view_arrays
from fl_darex.flower.roster import PARTITION_KEY, is_handshake, partition_of
from fl_darex.survivors import Q, Survivors
from fl_darex.training.calibration import choose_q, input_norms
from fl_darex.training.evaluation import evaluate as evaluate_model
from fl_darex.training.loop import train as train_model
from fl_darex.training.session import Session
from fl_darex.training.session import session as session_for
from fl_darex.training.settings import (
    DATASET_KEY,
    check_labels,
    has_own_data,
    run_settings,
    settings_of,
)

from .darex_mod import DarexMod
from .told import told


def base(message: Message, context: Context) -> Mapping[str, NDArray[Any]]:
    """Return the model before round 1, which the configuration alone determines."""
    return _session(message, context).base


def norms(message: Message, context: Context) -> Mapping[str, NDArray[Any]]:
    """Return the norms of the trained model's inputs on this node's examples."""
    return input_norms(_session(message, context), _partition(context))


def search(message: Message, context: Context, survivors: Survivors, rule: str) -> Q:
    """Return the q that suits the model that was trained last, on this node's examples."""
    before = view_arrays(next(iter(message.content.array_records.values())))
    session = _session(message, context)
    # Data of the node's own have a configuration with one client.
    clients = run_settings(message, context).federation.sample_size
    return choose_q(session, _partition(context), survivors, before, rule, clients)


def own(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Load what the run's settings name of somebody's own, before the mod is told of it by name."""
    if not is_handshake(message):
        settings_of(message, context)
    return call_next(message, context)


app = ClientApp(mods=[own, DarexMod(base, norms=norms, search=search)])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this node's examples for one round."""
    session, name = _session_with_model(message, context)
    asked = told()
    kept = None if asked is None or not asked.mask_first else asked.positions()
    if session.config.mask_first and kept is None:
        raise ConfigError(
            "train.masked = true, and the round's mask did not come with the message: the app "
            "needs DarexMod, as in ClientApp(mods=[DarexMod()]), and a server that asks for it"
        )
    whole = None if asked is None else [spec.name for spec in asked.layout.dense]
    result = train_model(session, _partition(context), _round(message), kept, whole)
    metrics = MetricRecord(
        {"num-examples": result.examples, "loss": result.loss, "pull": result.pull}
    )
    content = RecordDict({name: to_record(session.view()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this node's share of the evaluation examples."""
    session, _ = _session_with_model(message, context)
    examples = session.evaluation_examples(_partition(context))
    scores = evaluate_model(session, examples, session.config.train.threads)
    metrics = MetricRecord({"num-examples": len(examples), **scores})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _session_with_model(message: Message, context: Context) -> tuple[Session, str]:
    name, record = next(iter(message.content.array_records.items()))
    session = _session(message, context)
    session.write(view_arrays(record))
    return session, name


def _session(message: Message, context: Context) -> Session:
    """Return this process's session for the run, with the node's own data if it has some."""
    session = session_for(settings_of(message, context), has_own_data(context))
    check_labels(message, context, session.labels)
    return session


def _partition(context: Context) -> int:
    """Return the node's partition; seeds and masks go by it, and the share of common data."""
    if (own := partition_of(context)) is not None:
        return own
    partition = context.node_config.get(PARTITION_KEY)
    if partition is None and has_own_data(context):
        return context.node_id
    raise ConfigError(
        f"{PARTITION_KEY} = {partition!r} of this SuperNode is not a whole number; start it with "
        f"--node-config '{PARTITION_KEY}=0 num-partitions=3', or with data of its own: "
        f"--node-config '{DATASET_KEY}=\"/data/x\"'"
    )


def _round(message: Message) -> int:
    return int(next(iter(message.content.config_records.values()))[ROUND_KEY])  # type: ignore
