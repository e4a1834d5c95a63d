"""A Flower deployment on loopback, with a proxy between SuperNodes and SuperLink that counts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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


class Deployment:
    """Processes of Flower with a home and ports of their own.

    Args:
        folder: An empty folder: Flower's home, and where the logs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        self._bin = Path(sysconfig.get_path("scripts"))
        self._environment = os.environ | {
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "PATH": os.pathsep.join([str(self._bin), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
        }
        (folder / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{HOST}:{self.port}"\ninsecure = true\n',
            encoding="utf-8",
        )

    def start_superlink(self) -> None:
        """Start SuperLink and wait until it listens."""
        options = ["--insecure", "--disable-runtime-dependency-installation"]
        self._start("flower-superlink", *options, "--host", HOST, "--port", str(self.port))
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((HOST, self.port)).close()
                return
            except OSError:
                assert self._started[0].poll() is None and time.monotonic() < end, self.logs()
                time.sleep(0.1)

    def start_supernode(self, partition: int, partitions: int, port: int) -> None:
        """Start a SuperNode that looks for SuperLink on a port."""
        options = ["--insecure", "--superlink", f"{HOST}:{port}", "--port", str(free_port())]
        config = f"partition-id={partition} num-partitions={partitions}"
        self._start("flower-supernode", *options, "--node-config", config)

    def _start(self, command: str, *arguments: str) -> None:
        with (self.folder / f"{len(self._started)}-{command}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._bin / command), *arguments],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)

    def run(self, app: Path, timeout: float, **config: Any) -> dict[str, Any]:
        """Run an app to its end and return what ``flwr list`` says about it."""
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        run_id = self._flwr("run", str(app), "here", "--run-config", overrides)["run-id"]
        end = time.monotonic() + timeout
        while True:  # `flwr run` succeeds before the run has begun
            (listed,) = self._flwr("list", "here", "--run-id", run_id)["runs"]
            if listed["status"].startswith("finished"):
                break
            assert time.monotonic() < end, f"{listed['status']} after {timeout} s\n{self.logs()}"
            time.sleep(3)  # each look costs a second of processor time
        assert listed["status"] == "finished:completed", f"{listed}\n{self.logs()}"
        return dict(listed)

    def _flwr(self, *arguments: str) -> Any:
        done = subprocess.run(
            [str(self._bin / "flwr"), *arguments, "--format", "json"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.logs()}"
        return json.loads(done.stdout)

    def logs(self) -> str:
        """The ends of all logs."""
        texts = {p.name: p.read_text("utf-8", "replace") for p in self.folder.glob("*.log")}
        return "\n".join(f"--- {name}\n{text[-3000:]}" for name, text in sorted(texts.items()))

    def stop(self) -> None:
        """End every process; the SuperNodes first, for they say goodbye to SuperLink."""
        for process in reversed(self._started):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Flower's own children go by themselves when they find their parent gone.
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 5
            while (left := self.left()) and time.monotonic() < end:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.1)

    def left(self) -> list[int]:
        """Processes with this deployment's home, where the system tells (Linux)."""
        mark = f"FLWR_HOME={self.folder}\0".encode()
        left = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environment.read_bytes():
                    left.append(int(environment.parent.name))
        return left


@contextmanager
def deployment(folder: Path, supernodes: int) -> Iterator[tuple[Deployment, CountingProxy]]:
    """A SuperLink and SuperNodes behind a proxy, which are gone afterwards."""
    one = Deployment(folder)
    proxy = CountingProxy(one.port)
    try:
        one.start_superlink()
        for partition in range(supernodes):
            one.start_supernode(partition, supernodes, proxy.port)
        yield one, proxy
    finally:
        one.stop()
        proxy.close()


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server((HOST, 0)) as one:
        return int(one.getsockname()[1])
