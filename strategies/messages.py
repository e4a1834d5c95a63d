"""What goes out and what comes back: messages with our settings, replies that can be used."""

from __future__ import annotations

from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl_darex.errors import PacketError, Reason
from fl_darex.wire.delivery import Delivery
from fl_darex.wire.terms import Terms

from .aggregation import Reply

_LARGEST_WEIGHT = 2**53


def with_settings(
    content: RecordDict,
    model: ArrayRecord,
    carried: ArrayRecord,
    delivery: Delivery | None,
    terms: Terms | None,
) -> RecordDict:
    """Return a copy of a message's content for one client.

    Flower shares one content among all messages of a round.

    Args:
        content: What the wrapped strategy would send.
        model: The record in it that is the model.
        carried: What takes the model's place.
        delivery: What that is; None: the model.
        terms: What the reply must look like; None: as the app leaves it.
    """
    copied = RecordDict(dict(content.items()))
    if delivery is not None:
        for name, record in content.array_records.items():
            if record is model:
                copied[name] = carried
                break
        else:
            delivery = None  # another model than ours: it goes as it is
    if delivery is None and terms is None:
        return copied
    name = next(iter(content.config_records), "config")
    config = ConfigRecord(dict(content.config_records.get(name, ConfigRecord())))
    for settings in (delivery, terms):
        if settings is not None:
            settings.attach(config)
    copied[name] = config
    return copied


def again_with(message: Message, content: RecordDict) -> Message:
    """Return a message like another one, with other content."""
    old = message.metadata
    return Message(content, old.dst_node_id, old.message_type, ttl=old.ttl, group_id=old.group_id)


def read_reply(message: Message, terms: Terms, weighted_by_key: str) -> Reply:
    """Return a reply that can be averaged, its arrays or packet not looked at yet.

    Raises:
        PacketError: If it is an error, or does not hold one model and one weight.
    """
    if message.has_error():
        _refuse(message.error.reason or "the client failed without a reason")
    records = list(message.content.array_records.values())
    metrics = list(message.content.metric_records.values())
    if len(records) != 1 or len(metrics) != 1:
        _refuse(
            f"a reply must hold one ArrayRecord and one MetricRecord, "
            f"found {len(records)} and {len(metrics)}"
        )
    weight = metrics[0].get(weighted_by_key)
    if not isinstance(weight, int | float) or not 0 <= weight <= _LARGEST_WEIGHT:
        _refuse(f"the weight {weighted_by_key!r} is {weight!r}, not in [0, 2**53]")
    return Reply(message, records[0], float(weight), terms)


def _refuse(message: str) -> NoReturn:
    raise PacketError(message, Reason.REPLY)
