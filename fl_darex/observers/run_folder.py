"""The run folder: everything that a run leaves behind, readable at every moment.

``config.toml``, ``rounds.jsonl`` (a line a round), ``clients.jsonl`` (a line an exchange),
``summary.json`` and ``model/``. Lines are written as rounds close, the summary is replaced
atomically, so a run that was stopped leaves what it had.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fl_darex.errors import ConfigError
from fl_darex.files.atomic import write_text_atomically
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart, SaveModel

_PACKAGES = ("fl-darex", "flwr", "torch", "transformers", "peft", "datasets", "numpy", "ray")


class RunFolder:
    """Writes a run's files; an observer of the run.

    Args:
        path: The folder. It must not exist yet, or be empty; it is made when the run starts.

    Raises:
        ConfigError: If the folder holds something already, or is a file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"--out {str(path)!r} exists and is not an empty folder; "
                "choose another name or remove it"
            )
        self.path = path
        self._start: RunStart | None = None
        self._reports: list[RoundReport] = []
        self._handshake: list[Entry] = []
        self._written = 0  # of the handshakes: a node may come late
        self._clock = time.monotonic()

    def started(self, start: RunStart) -> None:
        """Make the folder and write the configuration."""
        self._start, self._clock = start, time.monotonic()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path / "config.toml", start.config.to_toml())
        except OSError as error:
            raise ConfigError(f"cannot write to {str(self.path)!r}: {error.strerror}") from None
        for name in ("rounds.jsonl", "clients.jsonl"):
            (self.path / name).touch()
        self._write_summary("running")

    def replied(self, entry: Entry) -> None:
        """Remember the handshake; other exchanges are written when their round closes."""
        if entry.kind == HANDSHAKE:
            self._handshake.append(entry)

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """Write the round; after the last one, the model too."""
        self._reports.append(report)
        before, self._written = self._handshake[self._written :], len(self._handshake)
        self._append("clients.jsonl", [asdict(entry) for entry in (*before, *entries)])
        self._append("rounds.jsonl", [asdict(report)])
        if self._start is not None and report.round == self._start.config.federation.rounds:
            save_model(self.path / "model")
            self._write_summary("finished")
        else:
            self._write_summary("running")

    def interrupted(self) -> None:
        """Mark the run as stopped before its end, if it had begun."""
        if self._start is not None and self.summary()["status"] == "running":
            self._write_summary("interrupted")

    def summary(self) -> dict[str, Any]:
        """Return the summary as it was written last; empty before the run starts."""
        path = self.path / "summary.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found

    def _write_summary(self, status: str) -> None:
        if self._start is None:
            return
        summary = {"status": status, **summarise(self._start, self._reports, self._handshake)}
        summary["seconds"] = time.monotonic() - self._clock
        summary["versions"] = versions()
        write_text_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def _append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def summarise(
    start: RunStart, reports: Sequence[RoundReport], handshake: Sequence[Entry]
) -> dict[str, Any]:
    """Return the totals of a run; ratios are dense bytes over bytes sent, None before round 1.

    In ``dense_...`` every client is sent the whole model in every round. Without ``held_bytes`` it
    is not sent the model before round 1 where it holds that, as a client of fl-darex does.
    """
    metrics = [report.metric for report in reports if report.metric is not None]
    extra = sum(entry.up_bytes + entry.down_bytes for entry in handshake)
    ways = ("up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes")
    up, down, dense_up, dense_down = (sum(getattr(r, way) for r in reports) for way in ways)
    held, total = sum(report.held_bytes for report in reports), up + down + extra
    return {
        "metric_name": start.metric_name,
        "initial_metric": start.initial_metric,
        "final_metric": metrics[-1] if metrics else None,
        "best_metric": max(metrics, default=None),
        "test_metric": reports[-1].test_metric if reports else None,
        "rounds": len(reports),
        "parameters": start.parameters,
        "up_bytes": up,
        "down_bytes": down,
        "handshake_bytes": extra,
        "total_bytes": total,
        "dense_up_bytes": dense_up,
        "dense_down_bytes": dense_down,
        "dense_total_bytes": dense_up + dense_down,
        "held_bytes": held,
        "up_ratio": dense_up / up if up else None,
        "total_ratio": (dense_up + dense_down) / total if up else None,
        "total_ratio_without_held": (dense_up + dense_down - held) / total if up else None,
        "failures": sum(report.failures for report in reports),
        "seed": start.config.federation.seed,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
