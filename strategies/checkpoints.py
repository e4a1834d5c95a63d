"""Where a strategy keeps checkpoints, how often, and what else belongs into them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_darex import checks
from fl_darex.compression.uplink import Uplink
from fl_darex.saveable import Saveable

from .expected import Downlink


@dataclass(frozen=True)
class Checkpoints:
    """Settings of the checkpoints of a run.

    Attributes:
        folder: Where the last one lies; of one run alone.
        every: Rounds from one to the next, 1 or more. What came after the last one is done again.
        also: What later rounds depend on beside strategy and clients, by name, such as an
            `fl_darex.strategies.averaging.Average`.
        facts: What must be the same when the run goes on, by name: JSON's values.
        keep: Whether the last one stays when all rounds are over; else the folder is then free for
            another run.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If ``every`` is below 1.
    """

    folder: str | os.PathLike[str]
    every: int = 1
    also: Mapping[str, Saveable] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False

    def __post_init__(self) -> None:
        checks.instance("folder", self.folder, str | os.PathLike, "a folder's path")
        object.__setattr__(self, "folder", Path(self.folder).expanduser())
        checks.whole("every", self.every, "a number of rounds, 1 or more", lambda n: n >= 1)
        for name, holder in self.also.items():
            checks.instance(f"also[{name!r}]", holder, Saveable, "something with state and restore")


def checkpoints_for(
    given: str | os.PathLike[str] | Checkpoints | None,
    uplink: Uplink,
    downlink: Downlink,
    more: Mapping[str, Any],
) -> Checkpoints | None:
    """Return checkpoints that know what makes a run another one; None: none are kept.

    Args:
        given: A folder, or settings with it.
        uplink: What is asked of clients.
        downlink: How the model goes to them.
        more: What else a run is, by name.

    Raises:
        TypeError: If it is none of these.
    """
    if given is None:
        return None
    made = given if isinstance(given, Checkpoints) else Checkpoints(given)
    facts = {f"uplink.{name}": value for name, value in asdict(uplink).items()}
    facts |= {f"downlink.{name}": value for name, value in asdict(downlink).items()}
    return replace(made, facts=facts | dict(more) | dict(made.facts))
