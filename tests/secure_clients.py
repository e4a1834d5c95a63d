"""Clients of secure aggregation without a ClientApp, and a round with drop-outs, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from federations import Federation
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_darex.clients.secure import answer, hide
from fl_darex.compression import SparseUpdate, Terms, Uplink
from fl_darex.delta import Delta, Layout
from fl_darex.flower.records import to_record
from fl_darex.masks import SHARED, keep_threshold
from fl_darex.positions import SeededMask
from fl_darex.pruning import draw
from fl_darex.secagg import SecureAggregation
from fl_darex.secagg.messages import MASKED, SECURE_KEY, Stage
from fl_darex.secagg.numbers import Target, to_vector
from fl_darex.secagg.ring import Vector
from fl_darex.strategies.secure.round import SecureRound
from fl_darex.wire.packet import encode
from fl_darex.wire.reader import read_packet

BASE = {
    "weight": np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5),
    "head": np.zeros(3, dtype=np.float32),
    "steps": np.array([5, -7], dtype=np.int64),
}
DENSE = ("head",)
LAYOUT = Layout.of(BASE, DENSE)
MASK = SeededMask(seed=3, round=2, slot=SHARED, keep=keep_threshold(0.5))
SURVIVORS = sum(found.size for found in MASK.in_layout(LAYOUT).values())
VERSION = bytes(8)

Arrays = Mapping[str, np.ndarray]


def update(slot: int, scale: float = 0.01) -> dict[str, np.ndarray]:
    """What a client's tensors are after training."""
    rng = np.random.default_rng(slot)
    return {
        "weight": BASE["weight"] + rng.normal(scale=scale, size=(8, 5)).astype(np.float32),
        "head": BASE["head"] + rng.normal(scale=scale, size=3).astype(np.float32),
        "steps": BASE["steps"] + slot + 1,
    }


def packet_for(tuned: Arrays) -> bytes:
    return encode(draw(Delta(tuned, BASE, DENSE), MASK), "fp32", base=VERSION)


def own_update(tuned: Arrays) -> SparseUpdate:
    return SparseUpdate.of_packet(read_packet(packet_for(tuned), LAYOUT))


def told(slot: int) -> Terms:
    """What the server told a client."""
    uplink = Uplink.of("dare", 0.5, mask="round", values="fp32", seed=MASK.seed, dense=DENSE)
    return Terms(uplink=uplink, round=MASK.round, slot=slot, version=VERSION)


TARGET = Target(BASE, LAYOUT, told(0), (SURVIVORS,), "num-examples")


def integers(
    tuned: Arrays, weight: float, settings: SecureAggregation, clients: int, slot: int
) -> Vector:
    """What a client adds to the sum, before masks."""
    stage = announced(settings, clients)
    return to_vector(own_update(tuned), BASE, weight, stage, told(slot))


def announced(settings: SecureAggregation, clients: int = 3) -> Stage:
    """The stage that says how numbers become integers."""
    return Stage(
        stage=MASKED,
        session="0" * 32,
        slot=0,
        threshold=2,
        range=settings.range,
        dense_range=settings.dense_range or settings.range,
        levels=settings.levels,
        width=settings.ring_for(clients).width,
        max_weight=settings.max_weight,
    )


def sealed(slot: int, tuned: Arrays, stage: Stage, state: RecordDict) -> bytes:
    """The packet with which a client answers the stage ``masked``; its weight is 1."""
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1.0})})
    reply = hide(Message(content, 1, "train"), own_update(tuned), BASE, told(slot), stage, state)
    (array,) = reply.content.array_records["arrays"].values()
    return array.data


class Clients:
    """All clients of a grid; each keeps its state from stage to stage.

    Args:
        tuned: What each one's tensors are after training, by slot.
        weights: By slot.
        silent: Stages that a client does not answer, as pairs of slot and stage.
    """

    def __init__(
        self,
        tuned: Mapping[int, Arrays],
        weights: Mapping[int, float],
        silent: Collection[tuple[int, str]] = (),
    ) -> None:
        self.tuned, self.weights, self.silent = tuned, weights, set(silent)
        self.states: dict[int, RecordDict] = {slot: RecordDict() for slot in tuned}
        self.seen: list[tuple[int, Stage]] = []
        self.replies: list[Message] = []

    def __call__(self, message: Message, context: Context) -> Message:
        slot = int(context.node_config["partition-id"])
        config = ConfigRecord(dict(message.content.config_records["config"]))
        stage = Stage.detach(config)
        assert stage is not None and stage.slot == slot
        self.seen.append((slot, stage))
        if (slot, stage.stage) in self.silent:
            raise TimeoutError(f"client {slot} is gone")
        if stage.stage != MASKED:
            record = answer(stage, self.states[slot])
            self.replies.append(Message(RecordDict({SECURE_KEY: record}), reply_to=message))
            return self.replies[-1]
        metrics = MetricRecord({"num-examples": self.weights[slot], "loss": 1.5})
        content = RecordDict({"arrays": to_record(self.tuned[slot]), "metrics": metrics})
        reply = Message(content, reply_to=message)
        update = own_update(self.tuned[slot])
        return hide(reply, update, BASE, told(slot), stage, self.states[slot])


class Lossy:
    """Loses what some clients would answer, and keeps the other replies.

    Args:
        app: The ClientApp.
        lost: Partitions and stages that are not answered.
        rounds: In which rounds; empty: in all.
    """

    def __init__(
        self, app: ClientApp, lost: Collection[tuple[int, str]] = (), rounds: Collection[int] = ()
    ) -> None:
        self.app, self.lost, self.rounds = app, set(lost), set(rounds)
        self.replies: list[Message] = []

    def __call__(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        for config in message.content.config_records.values():
            stage = Stage.detach(dict(config))
            in_round = not self.rounds or config.get("server-round") in self.rounds
            if stage and in_round and (partition, stage.stage) in self.lost:
                raise TimeoutError(f"client {partition} is gone")
        self.replies.append(self.app(message, context))
        return self.replies[-1]


def start(
    settings: SecureAggregation, clients: Any, count: int
) -> tuple[SecureRound, Federation, list[Message]]:
    """A round on a grid, and its messages without stages."""
    grid = Federation(clients, count)
    messages = [
        Message(RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()}), node, "train")
        for node in grid.get_node_ids()
    ]
    done = SecureRound(settings, grid, messages, grid.partitions, TARGET, 60.0)
    return done, grid, messages


def masked_replies(opened: SecureRound, grid: Federation, messages: list[Message]) -> list[Message]:
    """Open a round, and send what goes with the model to the clients that take part."""
    stages = opened.open()
    sent = []
    for message in messages:
        slot = grid.partitions[message.metadata.dst_node_id]
        if slot in stages:
            stages[slot].attach(message.content.config_records["config"])
            sent.append(message)
    return list(grid.send_and_receive(sent))
