"""How a command ends: what stops it, what a person reads, and its exit code."""

from __future__ import annotations

import atexit
import math
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Protocol

import typer
from rich.console import Console

from fl_darex.commands.messages import BAD_CONFIG, FAILED, plain_console
from fl_darex.commands.messages import say as say_it
from fl_darex.errors import ConfigError, DarexError
from fl_darex.observers.display import Display
from fl_darex.observers.files import TRACEBACK, has_checkpoint
from fl_darex.observers.run_folder import RunFolder, reason_of

_ONE_STOP_SECONDS = 2.0

INTERRUPTED = 130

_STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextmanager
def ended(folder: RunFolder, console: Console) -> Iterator[None]:
    """Do what is in the block as a command, whatever ends it.

    The folder's summary says how it ended, a line says it to a person, and the exit code is 1
    (failed), 2 (bad configuration) or 130 (interrupted).

    Args:
        folder: The run's folder, a context manager in the block.
        console: Where results go; errors go to stderr.
    """
    with stopped_by_signals(folder), reported(lambda error: _whole(error, folder)):
        try:
            yield
        except KeyboardInterrupt as stop:
            ignore_signals()  # one more would leave a summary that says "running"
            folder.interrupted(str(stop))
            if folder.status == "finished":
                say(console, f"the run had finished; run folder: {folder.path}")
                return
            left = f"what was done so far is in {folder.path}" if folder.status else "nothing began"
            if folder.status and has_checkpoint(folder.path):
                left += f"; fl-darex run --resume {shlex.quote(str(folder.path))} goes on"
            say(console, f"stopped; {left}")
            _leave_threads_behind()
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def reported(whole: Callable[[BaseException], str]) -> Iterator[None]:
    """Say an error of the block to a person, on stderr, and exit with its code.

    Args:
        whole: Returns of an error that nobody expected what is to be said after its line.
    """
    problems = plain_console(stderr=True)
    try:
        yield
    except typer.Exit:
        raise
    except ConfigError as error:
        say(problems, str(error), "error")
        raise typer.Exit(BAD_CONFIG) from None
    except DarexError as error:
        say(problems, str(error), "failed")
        raise typer.Exit(FAILED) from None
    except (Exception, SystemExit) as error:
        say(problems, f"{reason_of(error)}{whole(error)}", "failed")
        raise typer.Exit(FAILED) from None


class Stoppable(Protocol):
    """What is told by which signal it was stopped."""

    signal: str


@contextmanager
def stopped_by_signals(folder: Stoppable) -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop what is in the block as Ctrl-C does.

    What is ignored stays ignored: ``nohup`` and the shell's ``&`` mean it.

    Args:
        folder: Is told the signal's name.
    """
    before, stop = {}, _Stop(folder)
    if threading.current_thread() is threading.main_thread():
        for number in _STOPPING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            # Python puts default handlers back as it ends, and the exit code would be a signal's.
            signal.signal(number, signal.SIG_IGN if stop.stopped else handler)


@contextmanager
def shown(display: Display) -> Iterator[Display]:
    """Take a display's live line away after the block, which hides neither result nor error."""
    try:
        yield display
    finally:
        with unheard():
            display.stop()


def unheard() -> suppress:
    """Pass over that nobody reads any more: a closed pipe, or a terminal that is gone."""
    return suppress(OSError, SystemExit)  # SystemExit: rich, where a pipe was closed


def say(console: Console, text: str, heading: str = "") -> None:
    """Print a line for a person, whoever has closed the other end."""
    with unheard():
        say_it(console, text, heading and f"{heading}:", "red")


class _Stop:
    """Raises `KeyboardInterrupt` at a signal; what follows at once is part of the same stop.

    A terminal that is closed and a service manager send several. Later ones count again, so that
    a person need not wait for an end that takes long.
    """

    def __init__(self, folder: Stoppable) -> None:
        self._folder, self._last = folder, -math.inf

    @property
    def stopped(self) -> bool:
        """Whether a signal came."""
        return self._last > -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last > _ONE_STOP_SECONDS:
            self._last = now
            self._folder.signal = signal.Signals(number).name
            raise KeyboardInterrupt(self._folder.signal)


def ignore_signals() -> None:
    """Let nothing interrupt what is left to do."""
    if threading.current_thread() is threading.main_thread():
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _leave_threads_behind() -> None:
    """Leave at once where Python would wait for a thread: Flower's engine has the server in one.

    It would go on until its round times out, which may take an hour.
    """
    here = threading.current_thread()
    if any(one is not here and not one.daemon for one in threading.enumerate()):
        atexit._run_exitfuncs()  # Ray's processes, among others
        with unheard():
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(INTERRUPTED)


def _whole(error: BaseException, folder: RunFolder) -> str:
    """Return where the whole error is, or the error itself where no file has it."""
    place = folder.path / TRACEBACK
    if folder.status and place.is_file():
        return f"; all of it is in {place}"
    return "\n" + "".join(traceback.format_exception(error))
