"""Jobs: one message to one client, what is large in it moved to the object store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from flwr.app import ArrayRecord, Message, RecordDict
from ray import ObjectRef

from fl_darex.flower.private import with_content
from fl_darex.simulation.parcels import LARGE, pack

if TYPE_CHECKING:
    from fl_darex.simulation.kinds import Kind


@dataclass(eq=False)
class Job:
    """One message to one client.

    Attributes:
        message: Without the records that are in the object store.
        run_id: The run's.
        kind: Whose workers run it.
        models: References to those records, by name.
        deaths: Workers that died of it so far, or of one that was with it.
        alone: Whether it is given to a worker by itself: one of several may be a killer.
    """

    message: Message
    run_id: int
    kind: Kind
    models: Mapping[str, ObjectRef[Any]] = field(default_factory=dict)
    deaths: int = 0
    alone: bool = False

    @property
    def node(self) -> int:
        """The client."""
        return self.message.metadata.dst_node_id

    @property
    def key(self) -> str:
        """The id of the message."""
        return self.message.metadata.message_id

    @property
    def type(self) -> str:
        """The type of the message."""
        return self.message.metadata.message_type


@dataclass
class Records:
    """What a push puts into the object store: each record once, however many messages have it."""

    put: dict[int, tuple[ArrayRecord, ObjectRef[Any]]] = field(default_factory=dict)

    def job(self, message: Message, run_id: int, kind: Kind) -> Job:
        """Return what a message asks, its large records moved to the object store."""
        small, models = RecordDict(), {}
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord) and record.count_bytes() >= LARGE:
                models[name] = self._reference(record)
                record = ArrayRecord()  # holds the place
            small[name] = record
        return Job(with_content(message, small), run_id, kind, models)

    def _reference(self, record: ArrayRecord) -> ObjectRef[Any]:
        if id(record) not in self.put:
            self.put[id(record)] = (record, ray.put(pack(record)))
        return self.put[id(record)][1]
