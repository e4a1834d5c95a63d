"""The command as processes that start at once: forked from one that has loaded its libraries.

Each is a process of its own, with its own memory, files and signals, and can be killed like any
other; only the seconds of imports are saved.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

SERVER = """
import json, os, sys, traceback
import datasets, sklearn.datasets, sklearn.metrics, sklearn.model_selection
from transformers import ViTForImageClassification
import fl_darex.cli, fl_darex.clients.client_app, fl_darex.strategies.server_app
import fl_darex.simulation.in_process, fl_darex.tasks.digits.task

sys.modules["fl_darex.study.plots"] = None  # drawing takes longer than a run

def run(asked):
    os.setsid()
    out = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    os.chdir(asked["cwd"])
    sys.argv = ["fl-darex", *asked["arguments"]]
    try:
        fl_darex.cli.main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 99

print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        _, status = os.waitpid(asked["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    elif not (child := os.fork()):
        code = run(asked)
        sys.stdout.flush()
        os._exit(code)
    else:
        print(child, flush=True)
"""


class Commands:
    """Starts ``fl-darex`` as often as asked, in a folder.

    Args:
        path: Added to what Python imports from.
    """

    def __init__(self, path: Path) -> None:
        environment = os.environ | {"NO_COLOR": "1", "PYTHONPATH": f"{Path.cwd()}:{path}"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)
        assert self._read() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def start(self, arguments: Sequence[str], cwd: Path) -> int:
        """Start a command, whose output goes to ``log`` in the folder, and return its process."""
        log = str(cwd / "log")
        return int(self._ask({"arguments": list(arguments), "cwd": str(cwd), "log": log}))

    def wait(self, process: int) -> int:
        """Wait for a process's end and return its exit code; below 0, the signal."""
        return int(self._ask({"wait": process}))

    def kill(self, process: int) -> int:
        """Kill a process that nobody has waited for, and return its exit code."""
        os.kill(process, signal.SIGKILL)
        return self.wait(process)

    def _ask(self, what: dict[str, Any]) -> str:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()
