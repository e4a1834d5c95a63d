"""Ends what a Ray leaves behind whose driver was killed. It runs as a process of its own.

Ray's own processes end with their driver, but for its agents, which stay for ever, and its folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_GOODBYE = b"goodbye"
_PATIENCE, _END = 5.0, 20.0  # seconds until processes are killed, and until they are left alone


class Watchdog:
    """Watches over this process's Ray, until `goodbye`.

    Args:
        session: Folder of the Ray session.
    """

    def __init__(self, session: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, session],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def goodbye(self) -> None:
        """Hear that Ray was left in order."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(_GOODBYE, timeout=_PATIENCE)


def processes(session: Path) -> list[int]:
    """Return the processes that write to the folder of a session, or were started with its name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):  # there is none but on Linux
        with suppress(OSError):
            named = os.fsencode(session) in (entry / "cmdline").read_bytes()
            if named or any(_is_in(session, file) for file in (entry / "fd").iterdir()):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def clean(session: Path) -> None:
    """End the processes of a session and remove its folder."""
    start = time.monotonic()
    while (left := processes(session)) and (waited := time.monotonic() - start) < _END:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM if waited < _PATIENCE else signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(session, ignore_errors=True)


def _is_in(session: Path, file: Path) -> bool:
    with suppress(OSError):
        return os.readlink(file).startswith(f"{session}{os.sep}")
    return False


if __name__ == "__main__":
    if sys.stdin.buffer.read() != _GOODBYE:
        clean(Path(sys.argv[1]))
