"""The run folder: everything that a run leaves behind, readable at every moment.

``config.toml``, ``rounds.jsonl`` (a line a round), ``clients.jsonl`` (a line an exchange),
``summary.json``, ``model/``, ``checkpoint/``, and ``traceback.txt`` of a run that failed. Lines
are written whole as rounds close, the summary is replaced atomically and its ``status`` says what
became of the run: ``running``, ``finished``, ``interrupted`` or ``failed``.
"""

from __future__ import annotations

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
from fl_darex.files.lock import Lock
from fl_darex.files.reservation import give_back, reserve
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import files
from fl_darex.observers.observer import RoundReport, RunStart, SaveModel
from fl_darex.observers.summary import summarise, versions


class RunFolder:
    """Writes a run's files; an observer of the run.

    As a context manager it also writes how the run ended: without an error after all its rounds,
    it is ``finished``; by `KeyboardInterrupt`, ``interrupted``; by any other error, ``failed``. A
    `ConfigError` before the first round leaves no folder.

    Args:
        path: The folder. It must not exist yet, or be empty; it is taken when the run starts, or
            by `reserve`.
        numbered: Take ``path-2``, ``path-3`` and so on where ``path`` is not free.
        model: Whether the final model is saved.

    Attributes:
        path: The folder; with ``numbered``, the one that was taken.
        status: What its summary says; empty: there is no folder of this run.
        engine: What runs the clients, for the summary; empty: it does not say.
        signal: Name of the signal that stops the run; libraries raise a `KeyboardInterrupt` of
            their own that does not say it.
    """

    def __init__(self, path: Path, numbered: bool = False, model: bool = True) -> None:
        self.path = path
        self.status = self.signal = self.engine = ""
        self._numbered, self._saves = numbered, model
        self._config: RunConfig | None = None
        self._made: list[Path] = []
        self._start: RunStart | None = None
        self._reports: list[RoundReport] = []
        self._handshake: list[Entry] = []
        self._written = 0  # of the handshakes: a node may come late
        self._clock = time.monotonic()
        self._resumed = 0  # how often the run went on after a stop
        self._kept: dict[str, Any] = {}  # what a checkpoint knew of the files
        self._lock = Lock(path / files.ROUNDS)
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
                made = reserve(path, files.CONFIG, config.to_toml())
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
                raise ConfigError(files.taken(path))
        try:
            for name in (files.ROUNDS, files.CLIENTS):
                (self.path / name).touch()
            self._lock = Lock(self.path / files.ROUNDS)
            self._lock.take()
            self._write_summary("running")
        except OSError as error:
            self._give_back()
            raise ConfigError(f"cannot write to {str(self.path)!r}: {error.strerror}") from None

    def resume(self, config: RunConfig) -> None:
        """Take the folder of a run that was stopped, to go on with it.

        Nothing in it changes before the run has started.

        Raises:
            ConfigError: If there is no run in it, or one that has finished or still goes on.
        """
        files.check_run(self.path)
        summary = files.check_stopped(self.path, config)
        try:
            free = self._lock.take()
        except OSError as error:
            raise ConfigError(f"cannot write to {str(self.path)!r}: {error.strerror}") from None
        if not free:
            raise ConfigError(f"the run in {str(self.path)!r} still goes on, in another process")
        self._config, self._resumed = config, int(summary.get("resumed", 0)) + 1

    def state(self) -> dict[str, Any]:
        """Return how long the files are that the disk has, and what they took."""
        return {
            "written": self._written,
            "sizes": files.sizes(self.path),
            "seconds": time.monotonic() - self._clock,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Know what `state` said; what the files have beyond it is taken away by `started`."""
        self._written, self._kept = state["written"], state

    def started(self, start: RunStart) -> None:
        """Take the folder, unless it is taken, and write what is known before the first round."""
        if self._config is None:
            self.reserve(start.config)
        if start.reports:
            self._reports, self._handshake = [*start.reports], [*start.handshake]
        self._start, self._clock = start, time.monotonic() - self._kept.get("seconds", 0.0)
        with self._writing():
            if self._resumed:
                files.cut_back(self.path, self._kept.get("sizes", {}))
            if self._resumed or start.config != self._config:  # a budget has become a p
                self._config = start.config
                write_text_atomically(self.path / files.CONFIG, start.config.to_toml())
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
                append_line(self.path / files.CLIENTS, strict_json(asdict(entry)))
            self._reports.append(report)
            append_line(self.path / files.ROUNDS, strict_json(asdict(report)))
            last = self._config is not None and report.round == self._config.federation.rounds
            if last and self._saves:
                self._save(save_model)
            self._write_summary("finished" if last else "running")

    def interrupted(self, reason: str = "") -> None:
        """Mark the run as stopped before its end, if it had begun; with its model it is finished.

        Args:
            reason: By what, such as a signal's name.
        """
        if self.status == "running" and (self.path / files.MODEL).is_dir():
            self._end("finished", "")  # the signal came between the last model and the summary
        elif self.status == "running":
            self._end("interrupted", reason or self.signal)

    def failed(self, error: BaseException) -> None:
        """Mark the run as failed, with the error in one line, and in full in ``traceback.txt``."""
        if not self.status:
            return
        text = "".join(traceback.format_exception(error))
        with suppress(OSError):  # the summary is what matters
            write_text_atomically(self.path / files.TRACEBACK, text)
        self._end("failed", reason_of(error))

    def summary(self) -> dict[str, Any]:
        """Return the summary as it was written last; empty where there is none."""
        return files.read_summary(self.path)

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
        unfinished = self.path / files.UNFINISHED_MODEL
        try:
            save_model(unfinished)
            os.replace(unfinished, self.path / files.MODEL)
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
                lines = (self.path / files.ROUNDS).read_bytes().count(b"\n")
                del self._reports[lines:]
            try:
                self._write_summary(status, reason or None)
            except OSError as error:
                self.status = status
                log(
                    WARNING,
                    "%r cannot be written (%s): the run is %s, whatever it says",
                    str(self.path / files.SUMMARY),
                    error.strerror or error,
                    status,
                )

    def _write_summary(self, status: str, reason: str | None = None) -> None:
        if self._config is None:
            return
        totals = summarise(self._config, self._start, self._reports, self._handshake)
        summary = {"status": status, "reason": reason, **totals, "engine": self.engine or None}
        summary["resumed"] = self._resumed
        summary["seconds"] = time.monotonic() - self._clock
        summary["versions"] = versions()
        write = write_text_atomically if status in ("running", "finished") else write_text_anyway
        write(self.path / files.SUMMARY, strict_json(summary, indent=2) + "\n")
        self.status = status
        if status != "running":
            self._lock.give_back()

    def _give_back(self) -> None:
        self._lock.give_back()
        if self._config is not None and not self._resumed:
            shutil.rmtree(self.path / files.CHECKPOINT, ignore_errors=True)
            give_back(
                self.path, (files.CONFIG, files.ROUNDS, files.CLIENTS, files.SUMMARY), self._made
            )
            self._config, self.status = None, ""


def reason_of(error: BaseException) -> str:
    """Return an error as one line; ours say all in their message, others' need their type."""
    name = "" if isinstance(error, DarexError) else f"{type(error).__name__}: "
    return one_line(" ".join(f"{name}{error}".split()))
