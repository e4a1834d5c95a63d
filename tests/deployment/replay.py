"""What a run would have been without a network: its rounds again, in this process."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federations import Federation
from flwr.app import Error, Message
from flwr.clientapp import ClientApp


def exchanges(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's clients.jsonl."""
    lines = (folder / "clients.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def participants(rows: list[dict[str, Any]]) -> dict[int, dict[int, bool]]:
    """Whether the reply came, by round and client, of every client that was asked to train."""
    found: dict[int, dict[int, bool]] = defaultdict(dict)
    for row in rows:
        if row["kind"] == "train":
            found[row["round"]][row["client"]] = not row["failed"]
    return dict(found)


class Replay(Federation):
    """Lists in each round the clients of that round, and loses the replies that were lost.

    Args:
        app: The ClientApp.
        clients: Number of partitions.
        rounds: What `participants` returns.
    """

    def __init__(
        self, app: ClientApp, clients: int, rounds: Mapping[int, Mapping[int, bool]]
    ) -> None:
        super().__init__(app, clients)
        self._rounds = rounds
        self._finished = 0

    def get_node_ids(self) -> list[int]:
        now = self._rounds[self._finished + 1]
        return [node for node, partition in self.partitions.items() if partition in now]

    def _reply(self, message: Message) -> Message:
        if message.metadata.message_type == "train" and message.content.array_records:
            config = next(iter(message.content.config_records.values()))
            self._finished = int(config["server-round"])  # type: ignore[arg-type]
            if not self._rounds[self._finished][self.partitions[message.metadata.dst_node_id]]:
                return Message(Error(code=5, reason="lost"), reply_to=message)
        return super()._reply(message)
