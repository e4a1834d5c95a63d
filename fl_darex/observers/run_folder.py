"""The run folder: everything that a run leaves behind, readable at every moment.

``config.toml``, ``rounds.jsonl`` (a line a round), ``clients.jsonl`` (a line an exchange),
``summary.json``, ``model/``, and ``traceback.txt`` of a run that failed. Lines are written whole as
rounds close, the summary is replaced atomically and its ``status`` says what became of the run:
``running``, ``finished``, ``interrupted`` or ``failed``.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from logging import WARNING
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.common.logger import log

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError, DarexError, one_line
from fl_darex.files.atomic import write_text_anyway, write_text_atomically
from fl_darex.files.lines import append_line, strict_json
from fl_darex.files.reservation import give_back, reserve
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers.observer import RoundReport, RunStart, SaveModel
from fl_darex.observers.summary import summarise, versions

TRACEBACK = "traceback.txt"
"""Where in the folder of a failed run the whole error is."""

_CONFIG, _SUMMARY = "config.toml", "summary.json"
_ROUNDS, _CLIENTS = "rounds.jsonl", "clients.jsonl"
_MODEL, _UNFINISHED_MODEL = "model", "model.part"


class RunFolder:
    """Writes a run's files; an observer of the run.

    As a context manager it also writes how the run ended: without an error after all its rounds,
    it is ``finished``; by `KeyboardInterrupt`, ``interrupted``; by any other error, ``failed``. A
    `ConfigError` before the first round leaves no folder.

    Args:
        path: The folder. It must not exist yet, or be empty; it is taken when the run starts, or
            by `reserve`.
        numbered: Take ``path-2``, ``path-3`` and so on where ``path`` is not free.

    Attributes:
        path: The folder; with ``numbered``, the one that was taken.
        status: What its summary says; empty: there is no folder of this run.
        signal: Name of the signal that stops the run; libraries raise a `KeyboardInterrupt` of
            their own that does not say it.
    """

    def __init__(self, path: Path, numbered: bool = False) -> None:
        self.path = path
        self.status = self.signal = ""
        self._numbered = numbered
        self._config: RunConfig | None = None
        self._made: list[Path] = []
        self._start: RunStart | None = None
        self._reports: list[RoundReport] = []
        self._handshake: list[Entry] = []
        self._written = 0  # of the handshakes: a node may come late
        self._clock = time.monotonic()
        self._ending = threading.RLock()  # Flower's engine runs the server in another thread

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.interrupted(str(error))
        elif isinstance(error, ConfigError) and self._start is None:
            self._give_back()
        elif error is not None:
            self.failed(error)
        elif self.status == "running":
            rounds = self._config.federation.rounds if self._config else 0
            early = DarexError(f"the run ended after {len(self._reports)} of {rounds} rounds")
            self.failed(early)
            raise early

    def reserve(self, config: RunConfig) -> None:
        """Take the folder for this run, so that no other run can have it.

        Raises:
            ConfigError: If it holds something already, is a file, or cannot be written.
        """
        for number in count(1):
            path = self.path if number == 1 else self.path.with_name(f"{self.path.name}-{number}")
            try:
                made = reserve(path, _CONFIG, config.to_toml())
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(
                    f"cannot write to {str(path)!r}: {reason}; name a folder that can be written "
                    "with --out"
                ) from None
            if made is not None:
                self.path, self._made, self._config = path, made, config
                break
            if not self._numbered:
                raise ConfigError(_taken(path))
        try:
            for name in (_ROUNDS, _CLIENTS):
                (self.path / name).touch()
            self._write_summary("running")
        except OSError as error:
            self._give_back()
            raise ConfigError(f"cannot write to {str(self.path)!r}: {error.strerror}") from None

    def started(self, start: RunStart) -> None:
        """Take the folder, unless it is taken, and write what is known before the first round."""
        if self._config is None:
            self.reserve(start.config)
        self._start, self._clock = start, time.monotonic()
        with self._writing():
            if start.config != self._config:  # a budget has become a p
                self._config = start.config
                write_text_atomically(self.path / _CONFIG, start.config.to_toml())
            self._write_summary("running")

    def replied(self, entry: Entry) -> None:
        """Remember the handshake; other exchanges are written when their round closes."""
        if entry.kind == HANDSHAKE:
            self._handshake.append(entry)

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """Write the round; after the last one, the model too.

        Raises:
            DarexError: If something cannot be written; what was written before is still there.
        """
        with self._writing():
            before, self._written = self._handshake[self._written :], len(self._handshake)
            for entry in (*before, *entries):
                append_line(self.path / _CLIENTS, strict_json(asdict(entry)))
            self._reports.append(report)
            append_line(self.path / _ROUNDS, strict_json(asdict(report)))
            last = self._config is not None and report.round == self._config.federation.rounds
            if last:
                self._save(save_model)
            self._write_summary("finished" if last else "running")

    def interrupted(self, reason: str = "") -> None:
        """Mark the run as stopped before its end, if it had begun; with its model it is finished.

        Args:
            reason: By what, such as a signal's name.
        """
        if self.status == "running" and (self.path / _MODEL).is_dir():
            self._end("finished", "")  # the signal came between the last model and the summary
        elif self.status == "running":
            self._end("interrupted", reason or self.signal)

    def failed(self, error: BaseException) -> None:
        """Mark the run as failed, with the error in one line, and in full in ``traceback.txt``."""
        if not self.status:
            return
        text = "".join(traceback.format_exception(error))
        with suppress(OSError):  # the summary is what matters
            write_text_atomically(self.path / TRACEBACK, text)
        self._end("failed", reason_of(error))

    def summary(self) -> dict[str, Any]:
        """Return the summary as it was written last; empty where there is none."""
        path = self.path / _SUMMARY
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write while the run goes on, and say it so that a person knows what is left."""
        with self._ending:
            if self.status not in ("", "running"):
                raise DarexError(f"{str(self.path)!r} belongs to a run that is over")
            try:
                yield
            except OSError as error:
                raise DarexError(
                    f"cannot write to {str(self.path)!r}: {error.strerror or error}; what was "
                    "written before is there"
                ) from error

    def _save(self, save_model: SaveModel) -> None:
        """Save the model whole or not at all; half of one would only fill the disk."""
        unfinished = self.path / _UNFINISHED_MODEL
        try:
            save_model(unfinished)
            os.replace(unfinished, self.path / _MODEL)
        except Exception as error:  # each library has its own for a full disk
            raise DarexError(
                f"the model cannot be saved in {str(self.path)!r}: {reason_of(error)}; what was "
                "written before is there"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _end(self, status: str, reason: str) -> None:
        with self._ending:
            # A signal may have come between a round and its line.
            with suppress(OSError):
                lines = (self.path / _ROUNDS).read_bytes().count(b"\n")
                del self._reports[lines:]
            try:
                self._write_summary(status, reason or None)
            except OSError as error:
                self.status = status
                log(
                    WARNING,
                    "%r cannot be written (%s): the run is %s, whatever it says",
                    str(self.path / _SUMMARY),
                    error.strerror or error,
                    status,
                )

    def _write_summary(self, status: str, reason: str | None = None) -> None:
        if self._config is None:
            return
        totals = summarise(self._config, self._start, self._reports, self._handshake)
        summary = {"status": status, "reason": reason, **totals}
        summary["seconds"] = time.monotonic() - self._clock
        summary["versions"] = versions()
        write = write_text_atomically if status in ("running", "finished") else write_text_anyway
        write(self.path / _SUMMARY, strict_json(summary, indent=2) + "\n")
        self.status = status

    def _give_back(self) -> None:
        if self._config is not None:
            give_back(self.path, (_CONFIG, _ROUNDS, _CLIENTS, _SUMMARY), self._made)
            self._config, self.status = None, ""


def reason_of(error: BaseException) -> str:
    """Return an error as one line; ours say all in their message, others' need their type."""
    name = "" if isinstance(error, DarexError) else f"{type(error).__name__}: "
    return one_line(" ".join(f"{name}{error}".split()))


def _taken(path: Path) -> str:
    way_out = "choose another name with --out, or remove it"
    if (path / _CONFIG).is_file():
        return f"--out {str(path)!r} holds a run already; {way_out}"
    return f"--out {str(path)!r} exists and is not an empty folder; {way_out}"
