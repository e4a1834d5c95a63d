"""Observers of which none can cost a run its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import WARNING
from typing import Any

from flwr.common.logger import log

from fl_darex.errors import DarexError, one_line
from fl_darex.flower.ledger import Entry
from fl_darex.observers.observer import Observer, RoundReport, RunStart, SaveModel


class Guarded:
    """Passes a run on to an observer; what that one does wrong is one line in the log.

    An observer without which the run is worth nothing ends it with a `DarexError`. It goes on
    after anything else, and the observer is told what comes next as before.

    Args:
        observer: Any observer, of the package or of one's own.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._said = False

    def started(self, start: RunStart) -> None:
        """See `Observer.started`."""
        self._tell(lambda: self._observer.started(start))

    def replied(self, entry: Entry) -> None:
        """See `Observer.replied`."""
        self._tell(lambda: self._observer.replied(entry))

    def round_closed(
        self, report: RoundReport, entries: Sequence[Entry], save_model: SaveModel
    ) -> None:
        """See `Observer.round_closed`."""
        self._tell(lambda: self._observer.round_closed(report, entries, save_model))

    def _tell(self, hook: Callable[[], Any]) -> None:
        try:
            hook()
        except DarexError:
            raise
        except (Exception, SystemExit) as error:  # SystemExit: rich, where a pipe was closed
            if not self._said:
                self._said = True
                log(
                    WARNING,
                    "the observer %s failed and the run goes on; further errors of it are not "
                    "shown: %s",
                    type(self._observer).__name__,
                    one_line(f"{type(error).__name__}: {error}"),
                    exc_info=error if isinstance(error, Exception) else None,
                )
