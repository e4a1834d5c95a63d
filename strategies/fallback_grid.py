"""A view of a Grid that sends the whole model to clients that turn out not to hold a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fl_darex.wire.delivery import MISSING
from fl_darex.wire.grid_view import GridView


class FallbackGrid(GridView):
    """Asks again, with everything, where a client answers that something is missing.

    Args:
        grid: Any Flower Grid.
        again: Returns the message that takes the place of one that a client could not use.
    """

    def __init__(self, grid: Grid, again: Callable[[Message], Message]) -> None:
        super().__init__(grid)
        self._again = again

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for their replies, at most ``timeout`` seconds in all."""
        end = None if timeout is None else time.monotonic() + timeout
        asked = list(messages)
        replies = self._exchange(asked, timeout)
        lacking = {
            reply.metadata.reply_to_message_id
            for reply in replies
            if reply.has_content() and MISSING in reply.content
        }
        if not lacking:
            return replies
        told = [r for r in replies if r.metadata.reply_to_message_id not in lacking]
        retry = [self._again(m) for m in asked if m.metadata.message_id in lacking]
        left = None if end is None else max(0.0, end - time.monotonic())
        return [*told, *self._exchange(retry, left)]

    def _exchange(self, asked: list[Message], timeout: float | None) -> list[Message]:
        """Return replies, each in the name of the client that was asked.

        Where a client died while it sent its reply, Flower says so in the server's own name.
        """
        replies = list(self.grid.send_and_receive(asked, timeout=timeout))
        by_id = {message.metadata.message_id: message for message in asked}
        for index, reply in enumerate(replies):
            message = by_id.get(reply.metadata.reply_to_message_id)
            if message is None or not reply.has_error():
                continue
            if reply.metadata.src_node_id != message.metadata.dst_node_id:
                replies[index] = Message(reply.error, reply_to=message)
        return replies
