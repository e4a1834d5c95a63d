"""A Flower deployment on loopback."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counting_proxy import HOST, CountingProxy
from credentials import make_certificates, make_node_key
from processes import with_variable

ROOT = Path(__file__).resolve().parent.parent
_GIVEN: set[int] = set()  # ports


class Deployment:
    """Processes of Flower with homes and ports of their own.

    Args:
        folder: An empty folder: Flower's home, and where the logs go.
        secure: Whether to use TLS and known SuperNodes alone, rather than neither.
        scripts: Where Flower's commands are; default: beside this Python.
        path: What the apps find beside their bundle; None: nothing.
    """

    def __init__(
        self,
        folder: Path,
        secure: bool = False,
        scripts: Path | None = None,
        path: Path | None = ROOT,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        self._bin = scripts or Path(sysconfig.get_path("scripts"))
        self._secure = secure
        self._superlink = folder  # its log
        self._environment = os.environ | {
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
            "PATH": os.pathsep.join([str(self._bin), os.environ["PATH"]]),
            "PYTHONPATH": str(path or ""),
        }
        trust = "insecure = true\n"
        if secure:
            make_certificates(folder, HOST)
            trust = f'root-certificates = "{folder / "ca.pem"}"\n'
        (folder / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{HOST}:{self.port}"\n{trust}',
            encoding="utf-8",
        )

    def start_superlink(self, *more: str) -> None:
        """Start SuperLink and wait until it listens."""
        options = ["--disable-runtime-dependency-installation", *more]
        if self._secure:
            options += ["--ssl-ca-certfile", str(self.folder / "ca.pem")]
            options += ["--ssl-certfile", str(self.folder / "server.pem")]
            options += ["--ssl-keyfile", str(self.folder / "server.key")]
            options += ["--enable-supernode-auth"]
        else:
            options += ["--insecure"]
        process, self._superlink = self._start(
            "flower-superlink", *options, "--host", HOST, "--port", str(self.port)
        )
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((HOST, self.port)).close()
                return
            except OSError:
                assert process.poll() is None and time.monotonic() < end, self.logs()
                time.sleep(0.1)

    def start_supernode(
        self,
        partition: int,
        partitions: int,
        port: int | None = None,
        home: Path | None = None,
        **config: Any,
    ) -> SuperNode:
        """Start a SuperNode.

        Args:
            partition: Its partition.
            partitions: How many there are.
            port: Where it looks for SuperLink; default: where SuperLink is.
            home: Flower's home, and ours for caches; with TLS, a folder with its ``node.key``.
            **config: More of its configuration.
        """
        values = {"partition-id": partition, "num-partitions": partitions} | config
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        options = ["--superlink", f"{HOST}:{port or self.port}", "--port", str(free_port())]
        if self._secure and home is not None:
            options += ["--root-certificates", str(self.folder / "ca.pem")]
            options += ["--auth-supernode-private-key", str(home / "node.key")]
        else:
            options += ["--insecure"]
        started = self._start("flower-supernode", *options, "--node-config", text, home=home)
        return SuperNode(*started)

    def register_supernode(self, home: Path) -> int:
        """Make a key for a SuperNode, tell SuperLink of it and return the node's id."""
        home.mkdir()
        public = make_node_key(home / "node.key")
        return int(self._flwr("supernode", "register", str(public), "here")["node-id"])

    def _start(
        self, command: str, *arguments: str, home: Path | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{len(self._started)}-{command}.log"
        own: dict[str, str] = {}
        if home:
            own = {"HOME": str(home), "FLWR_HOME": str(home), "FL_DAREX_CACHE": str(home / "cache")}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(self._bin / command), *arguments],
                cwd=self.folder,
                env=self._environment | own,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process, log

    def submit(self, app: Path, *options: str, **config: Any) -> str:
        """Start a run of an app and return its id."""
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        if overrides:
            options = (*options, "--run-config", overrides)
        return str(self._flwr("run", str(app), "here", *options)["run-id"])

    def listed(self, run_id: str) -> dict[str, Any]:
        """Return what ``flwr list`` says of a run."""
        (found,) = self._flwr("list", "here", "--run-id", run_id)["runs"]
        return dict(found)

    def finish(self, run_id: str, timeout: float, ends: str = "completed") -> dict[str, Any]:
        """Wait for a run's end, which must be the one expected; return what is listed of it."""
        end = time.monotonic() + timeout
        while True:  # `flwr run` succeeds before the run has begun
            self._wait_for_a_word_of(run_id, min(end, time.monotonic() + 30))
            found = self.listed(run_id)
            if found["status"].startswith("finished"):
                break
            assert time.monotonic() < end, f"{found['status']} after {timeout} s\n{self.logs()}"
        assert found["status"] == f"finished:{ends}", f"{found}\n{self.log_of(run_id)}"
        return found

    def _wait_for_a_word_of(self, run_id: str, end: float) -> None:
        """Wait until SuperLink has logged that a task of a run is done.

        To ask it costs two seconds of processor time, which the run itself can use better.
        """
        word = re.compile(rf"Finished task \d+ of run {run_id}\b")
        while time.monotonic() < end and not word.search(self._superlink_says()):
            time.sleep(0.2)

    def _superlink_says(self) -> str:
        return self._superlink.read_text("utf-8", "replace")

    def run(self, app: Path, timeout: float, **config: Any) -> dict[str, Any]:
        """Run an app to its end and return what ``flwr list`` says about it."""
        return self.finish(self.submit(app, **config), timeout)

    def log_of(self, run_id: str) -> str:
        """What a run's ServerApp logged so far."""
        return self._call("log", run_id, "here", "--show").stdout

    def _flwr(self, *arguments: str) -> Any:
        done = self._call(*arguments, "--format", "json")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.logs()}"
        return json.loads(done.stdout[done.stdout.index("{") :])

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._bin / "flwr"), *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

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

    def left(self, home: Path | None = None) -> list[int]:
        """Processes with this deployment's home, or one in it, where the system tells (Linux)."""
        mark = str(home or self.folder)
        return with_variable("FLWR_HOME", lambda its: its == mark or its.startswith(mark + "/"))


@dataclass
class SuperNode:
    """A SuperNode that was started, and what it logs."""

    process: subprocess.Popen[bytes]
    log: Path

    def says(self, text: str) -> bool:
        """Whether a text is in the log by now."""
        return text in self.log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """Give it no time for a goodbye."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it do nothing for a while; its heartbeats may be missing for half a minute."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def wait_for(what: str, done: Callable[[], Any], timeout: float, logs: Callable[[], str]) -> Any:
    """Wait until something is true and return it."""
    end = time.monotonic() + timeout
    while not (found := done()):
        assert time.monotonic() < end, f"not after {timeout} s: {what}\n{logs()}"
        time.sleep(0.2)
    return found


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
    """A port on which nobody listens now, and which this process has not been given before.

    The system takes none of these for connections (Linux: from 32,768 on), and tests that run at
    once in several processes of pytest-xdist have a thousand each.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1000 * (worker % 12)
    for port in random.sample(range(first, first + 1000), 1000):
        if port in _GIVEN:
            continue
        with suppress(OSError), socket.create_server((HOST, port)):
            _GIVEN.add(port)
            return port
    raise OSError("a thousand ports are all in use")
