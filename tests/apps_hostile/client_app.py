"""A client that needs NumPy alone and trains honestly, unless its node is set up to misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_darex.clients import DarexMod
from fl_darex.flower.records import packet_of, packet_record, to_arrays, to_record
from fl_darex.wire.header import HEADER_BYTES, read_header

# Of the model that `apps_hostile.server_app` starts with.
SHAPES = {"embedding": (1000, 400), "layer.weight": (200, 200), "layer.bias": (200,), "s": ()}

# How often the packet that was asked for a reply's size is sent.
TIMES = 10_000


def tamper(change: Callable[[bytes], bytes]) -> Callable[[Message], None]:
    """Return an act that changes the packet in a reply."""

    def act(reply: Message) -> None:
        (name, record), *_ = reply.content.array_records.items()
        reply.content[name] = packet_record(change(packet_of(record) or b""))

    return act


def weigh(examples: float) -> Callable[[Message], None]:
    """Return an act that claims a number of examples."""

    def act(reply: Message) -> None:
        reply.content["metrics"]["num-examples"] = examples

    return act


def forged(**changes: Any) -> Callable[[Message], None]:
    """Return an act that changes a packet's header and makes its checksum right again."""

    def change(packet: bytes) -> bytes:
        return replace(read_header(packet), **changes).seal(packet[HEADER_BYTES:])

    return tamper(change)


def not_a_number(packet: bytes) -> bytes:
    """Return a sound packet of survivors that are all NaN (fp16)."""
    body = b"\x00\x7e" * ((len(packet) - HEADER_BYTES) // 2)
    return read_header(packet).seal(body)


def enlarged(packet: bytes) -> bytes:
    """Return a packet that is sound but for its size."""
    return read_header(packet).seal(packet[HEADER_BYTES:] * TIMES)


def replay(packet: bytes) -> bytes:
    """Return what this node wanted to send the round before."""
    return (Path.home() / "last.packet").read_bytes()


def other_model(reply: Message) -> None:
    """Send the tensors of another model, whole."""
    (name, _), *_ = reply.content.array_records.items()
    reply.content[name] = to_record({"w": np.ones((3, 5), np.float32)})


def lies(reply: Message) -> None:
    """Send the model's tensors as arrays that are none."""
    (name, _), *_ = reply.content.array_records.items()
    header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (9,), }"
    reply.content[name] = ArrayRecord(
        {
            tensor: Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=header)
            for tensor, shape in SHAPES.items()
        }
    )


def crash(reply: Message) -> None:
    """End the process without a word."""
    os._exit(3)


def fail(reply: Message) -> None:
    """Raise what no app should."""
    raise RuntimeError("the hostile client gives up")


# By round, from 1: what the hostile client does, and what the server's log must say of it.
ACTS: list[tuple[Callable[[Message], None], str]] = [
    (tamper(lambda packet: packet[:-1] + bytes([packet[-1] ^ 1])), "checksum"),
    (tamper(replay), "round is 1"),
    (other_model, "tensors"),
    (tamper(not_a_number), "NaN"),
    (weigh(10**12), "num-examples"),
    (weigh(-1), "num-examples"),
    (tamper(enlarged), "bytes"),
    (forged(slot=0), "slot is 0"),
    (forged(survivors=2**62), "survivors"),
    (lies, "embedding"),
    (fail, "the hostile client gives up"),
    (crash, "ClientApp stopped responding"),
]


def misbehave(message: Message, context: Context, call_next: Any) -> Message:
    """Let the honest client work, and spoil what comes out where the node is set up for it."""
    reply: Message = call_next(message, context)
    if not context.node_config.get("hostile") or not reply.content.array_records:
        return reply
    (_, record), *_ = reply.content.array_records.items()
    honest = packet_of(record) or b""
    ACTS[int(message.content["config"]["server-round"]) - 1][0](reply)
    (Path.home() / "last.packet").write_bytes(honest)
    return reply


app = ClientApp(mods=[misbehave, DarexMod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    rng = np.random.default_rng([int(context.node_config["partition-id"]), config["server-round"]])
    arrays = {
        name: value + rng.normal(scale=0.01, size=value.shape).astype(np.float32)
        for name, value in to_arrays(message.content["arrays"]).items()
    }
    metrics = MetricRecord({"num-examples": 1 + int(context.node_config["partition-id"])})
    return Message(RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message)
