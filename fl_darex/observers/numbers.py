"""How far a run is, from what an observer is told: what is done, how fast it goes, how long yet."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass
class Numbers:
    """Counts of a run that goes on; times are those of `time.monotonic`.

    Attributes:
        rounds: Of the whole run.
        asked: Clients that train in a round.
        closed: Rounds that are over.
        before: Rounds that were over when this process went on with the run.
        done: Clients whose reply to this round's training is there.
        pending: Clients that run or wait for a worker, where the engine says it; else 0.
        replies: Of all rounds, those to evaluations too.
        failed: Those of them that are errors, or never came.
        up_bytes: Client to server, of all rounds.
        down_bytes: Server to client.
        began: When clients were there, and the first round was under way; None: not yet.
    """

    rounds: int = 0
    asked: int = 0
    closed: int = 0
    before: int = 0
    done: int = 0
    pending: int = 0
    replies: int = 0
    failed: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    began: float | None = None

    @property
    def trained(self) -> int:
        """Clients that are through with this round's training; replies may come all at once."""
        return min(max(self.done, self.asked - self.pending if self.pending else 0), self.asked)

    @property
    def share(self) -> float:
        """How much of the run is over, from 0 to 1."""
        part = self.trained / self.asked if self.asked else 0.0
        return min((self.closed + part) / self.rounds, 1) if self.rounds else 0.0

    def seconds(self, now: float) -> float:
        """Return how long the rounds have taken so far."""
        return 0.0 if self.began is None else now - self.began

    def a_second(self, now: float) -> float:
        """Return how many clients a second have replied so far, evaluations included."""
        seconds = self.seconds(now)
        return self.replies / seconds if seconds > 0 else 0.0

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the speed so far; None: nothing is done yet."""
        done = self.share - (self.before / self.rounds if self.rounds else 0.0)
        return self.seconds(now) * (1 - self.share) / done if done > 0 else None


def span(seconds: float | None) -> str:
    """Return a time as a person reads it, ``0:02:48``; None is not known yet."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))


def size(count: int) -> str:
    """Return a number of bytes as MB, or GB where it is large."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def resident() -> int | None:
    """Return the bytes of memory that this process has; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * mmap.PAGESIZE
