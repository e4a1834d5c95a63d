"""A run as a curve: its metric against the bytes that were sent until then.

All of it is read from a run folder, so nothing here knows models, Flower or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from fl_darex.errors import ConfigError

MEGABIT = 1e6 / 8
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run. All sequences have an entry for each round that is over; bytes are running totals.

    Attributes:
        summary: ``summary.json``.
        rounds: Numbers of the rounds, from 1.
        metrics: The metric after each; None where it was not measured.
        up: Bytes from clients to the server until then, without the handshake.
        down: Bytes from the server to clients, without the handshake.
        handshake: Bytes, both ways, of the exchanges before the rounds.
        slowest: The bytes (down, up) of each client in each round: a sequence of pairs a round.
        rows: The lines of ``rounds.jsonl``.
    """

    summary: Mapping[str, Any]
    rounds: Sequence[int]
    metrics: Sequence[float | None]
    up: Sequence[int]
    down: Sequence[int]
    handshake: int
    slowest: Sequence[Sequence[tuple[int, int]]]
    rows: Sequence[Mapping[str, Any]]

    @property
    def total(self) -> list[int]:
        """Bytes both ways until each round was over, the handshake included."""
        return [up + down + self.handshake for up, down in zip(self.up, self.down, strict=True)]

    @property
    def final(self) -> float | None:
        """The last metric; None if it was never measured."""
        return next((metric for metric in reversed(self.metrics) if metric is not None), None)

    def seconds(self, up: float, down: float) -> list[float]:
        """Return the time on the wire until each round was over: its slowest client's, each round.

        Args:
            up: Rate of each client's link to the server, in Mbit/s.
            down: Rate from the server, likewise.
        """
        took = (
            max((d / down + u / up for d, u in clients), default=0.0) / MEGABIT
            for clients in self.slowest
        )
        return list(accumulate(took))


def read_curve(folder: Path) -> Curve:
    """Return the run in a run folder; one that goes on, or was stopped, as far as it is.

    Raises:
        ConfigError: If there is no run, or a file of it cannot be read.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        rows = _lines(folder / "rounds.jsonl")
        clients = _lines(folder / "clients.jsonl")
        by_round: dict[int, dict[int, tuple[int, int]]] = {row["round"]: {} for row in rows}
        for entry in clients:
            if entry["round"] in by_round:
                so_far = by_round[entry["round"]]
                down, up = so_far.get(entry["client"], (0, 0))
                so_far[entry["client"]] = down + entry["down_bytes"], up + entry["up_bytes"]
        return Curve(
            summary=summary,
            rounds=[row["round"] for row in rows],
            metrics=[row["metric"] for row in rows],
            up=[*accumulate(row["up_bytes"] for row in rows)],
            down=[*accumulate(row["down_bytes"] for row in rows)],
            handshake=int(summary.get("handshake_bytes", 0)),
            slowest=[[*by_round[row["round"]].values()] for row in rows],
            rows=rows,
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ConfigError(f"{str(folder)!r} is no run folder: it has no {name}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the run in {str(folder)!r} cannot be read ({type(error).__name__}: {error}); remove "
            "the folder, or name others"
        ) from None


def first_at(curve: Curve, reached: Callable[[float], bool]) -> int | None:
    """Return the place of the first round with such a metric; None: there is none."""
    for place, metric in enumerate(curve.metrics):
        if metric is not None and reached(metric):
            return place
    return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; a last line that is not whole yet is none."""
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
