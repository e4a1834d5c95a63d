"""The one place that touches what is private in Flower, each trick under a name of its own.

``Message(...)`` on the driver reads `TaskIdentity`, which Flower's own engines set for their
processes; an engine of ours has to do the same. Ids of messages are given by SuperLink, so a
`Message` has no public way to set them, nor to be looked at with another content. The rules of an
app's file are those of Flower's command, which has them to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES
from flwr.common.constant import SUPERLINK_NODE_ID as SERVER_NODE_ID
from flwr.common.constant import ErrorCode, SType
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.constant import NodeStatus
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_darex.seeds import derive

Plain = TypeVar("Plain", Message, Metadata)

# The constants and types say what crosses the network; Flower has them nowhere else.
__all__ = [
    "CHUNK_BYTES",
    "SERVER_NODE_ID",
    "ErrorCode",
    "NodeInfo",
    "NodeStatus",
    "Run",
    "SType",
    "adopt_run",
    "answering",
    "as_error",
    "flattened",
    "from_bytes",
    "is_simulated",
    "node_id_of",
    "number",
    "read_project",
    "to_bytes",
    "with_content",
]


def adopt_run(label: str) -> Run:
    """Make this process the driver of a run and return the run.

    Ids are as wide as a deployment's, so that messages weigh the same.
    """
    run_id = derive(0, "run", label) | 1 << 62
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = derive(0, "task", label) | 1 << 62
    run = Run.create_empty(run_id=run_id)
    run.primary_task_id = TaskIdentity.task_id
    return run


def node_id_of(partition: int) -> int:
    """Return the id of a simulated node: stable, and as wide as a deployment's random ids."""
    return derive(0, "node", partition) | 1 << 62


def is_simulated(grid: Grid) -> bool:
    """Return whether a grid is that of Flower's own simulation."""
    # It takes Flower's server with it, seconds of imports that nobody else needs.
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def read_project(folder: Path) -> dict[str, Any]:
    """Return an app's ``pyproject.toml``, checked as ``flwr run`` does.

    Raises:
        OSError: If there is none, or it cannot be read.
        ValueError: If it is no TOML, or lacks what Flower wants in it.
    """
    from flwr.common.config import get_project_config  # takes a fifth of a second

    found: dict[str, Any] = get_project_config(folder)
    return found


def flattened(settings: Mapping[str, Any]) -> dict[str, bool | float | int | str]:
    """Return nested settings as ``flwr run`` does: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``.

    Raises:
        ValueError: If a value is neither text nor number nor truth value.
    """
    from flwr.common.config import flatten_dict

    return dict(flatten_dict(dict(settings)))


def number(message: Message, message_id: str) -> None:
    """Give a message its id, as SuperLink does when one is pushed."""
    message.metadata.__dict__["_message_id"] = message_id


def with_content(message: Message, content: RecordDict) -> Message:
    """Return a message with another content, and metadata of its own."""
    other = _copy(message)
    other.__dict__ |= {"_content": content, "_metadata": _copy(message.metadata)}
    return other


def answering(reply: Message, message_id: str) -> Message:
    """Return a reply as if it answered the message of that id; the content is shared."""
    other = _copy(reply)
    other.__dict__["_metadata"] = metadata = _copy(reply.metadata)
    metadata.__dict__["_reply_to_message_id"] = message_id
    return other


def as_error(reply: Message, reason: str) -> Message:
    """Return a reply with an error in place of its content."""
    other = _copy(reply)
    other.__dict__ |= {"_content": None, "_error": Error(ErrorCode.UNKNOWN, reason)}
    return other


def _copy(plain: Plain) -> Plain:
    """Return what `copy.copy` does of an object that is no more than its attributes, faster."""
    other: Plain = object.__new__(type(plain))
    other.__dict__.update(plain.__dict__)
    return other


def to_bytes(records: RecordDict) -> bytes:
    """Return records as Flower sends the state of a node to its ClientApp; 2 GiB at most."""
    data: bytes = recorddict_to_proto(records).SerializeToString()
    return data


def from_bytes(data: bytes) -> RecordDict:
    """Return the records that `to_bytes` wrote."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
