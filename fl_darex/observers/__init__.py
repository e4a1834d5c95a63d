"""What a run tells the outside world, and who listens."""

from fl_darex.observers.observer import Observer, RoundReport, RunStart, SaveModel

__all__ = ["Observer", "RoundReport", "RunStart", "SaveModel"]
