"""A proxy between SuperNodes and SuperLink that counts what passes."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

HOST = "127.0.0.1"
REQUEST = re.compile(rb"POST /v1/fleet/([a-z-]+) HTTP/1\.1\r\n")


class CountingProxy:
    """Passes TCP connections on to another port of this machine.

    Attributes:
        port: Where to connect.
        up: Bytes from the clients to the server.
        down: Bytes from the server to the clients.
        requests: Requests by method of the Fleet API.
    """

    def __init__(self, target: int) -> None:
        self.up = self.down = 0
        self.requests: Counter[str] = Counter()
        self._target = target
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let what is on its way pass, then close everything."""
        end = time.monotonic() + 5
        for pump in self._pumps:
            pump.join(max(0.0, end - time.monotonic()))
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self._target))
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            self._pump(client, server, self._counter_up())
            self._pump(server, client, self._count_down)

    def _pump(
        self, source: socket.socket, sink: socket.socket, count: Callable[[bytes], None]
    ) -> None:
        def pump() -> None:
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    count(data)
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=pump, daemon=True)
        self._pumps.append(thread)
        thread.start()

    def _counter_up(self) -> Callable[[bytes], None]:
        tail = b""

        def count(data: bytes) -> None:
            nonlocal tail
            seen = tail + data
            fresh = [m[1].decode() for m in REQUEST.finditer(seen) if m.end() > len(tail)]
            tail = seen[-64:]  # a request may begin in one piece and go on in the next
            with self._lock:
                self.up += len(data)
                self.requests.update(fresh)

        return count

    def _count_down(self, data: bytes) -> None:
        with self._lock:
            self.down += len(data)
