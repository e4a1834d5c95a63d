"""The ClientApp of this repository: fine-tune locally, send a packet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_darex.survivors import Q, Survivors
from fl_darex.training.calibration import choose_q, input_norms
from fl_darex.training.evaluation import evaluate as evaluate_model
from fl_darex.training.loop import train as train_model
from fl_darex.training.session import Session
from fl_darex.training.session import session as session_for
from fl_darex.training.settings import settings_of
from fl_darex.wire.handshake import answer
from fl_darex.wire.ledger import HANDSHAKE, ROUND_KEY
from fl_darex.wire.records import to_record, view_arrays

from .darex_mod import DarexMod


def base(message: Message, context: Context) -> Mapping[str, NDArray[Any]]:
    """Return the model before round 1, which the configuration alone determines."""
    return session_for(settings_of(message, context)).base


def norms(message: Message, context: Context) -> Mapping[str, NDArray[Any]]:
    """Return the norms of the trained model's inputs on this node's examples."""
    return input_norms(session_for(settings_of(message, context)), _partition(context))


def search(message: Message, context: Context, survivors: Survivors, rule: str) -> Q:
    """Return the q that suits the model that was trained last, on this node's examples."""
    before = view_arrays(next(iter(message.content.array_records.values())))
    session = session_for(settings_of(message, context))
    return choose_q(session, _partition(context), survivors, before, rule)


app = ClientApp(mods=[DarexMod(base, norms=norms, search=search)])


@app.query(HANDSHAKE)
def handshake(message: Message, context: Context) -> Message:
    """Tell the server which partition this node has."""
    return answer(message, _partition(context))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this node's examples for one round."""
    session, name = _session_with_model(message, context)
    result = train_model(session, _partition(context), _round(message))
    metrics = MetricRecord(
        {"num-examples": result.examples, "loss": result.loss, "pull": result.pull}
    )
    content = RecordDict({name: to_record(session.read()), "metrics": metrics})
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
    session = session_for(settings_of(message, context))
    session.write(view_arrays(record))
    return session, name


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _round(message: Message) -> int:
    return int(next(iter(message.content.config_records.values()))[ROUND_KEY])  # type: ignore
