"""Loads data and model in phases that a person can follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_darex.config import RunConfig
from fl_darex.observers.phases import Phases

if TYPE_CHECKING:
    from fl_darex.training.session import Session


def load_session(config: RunConfig, phases: Phases) -> Session:
    """Return this process's session: what is wrong with data or model comes to light here.

    Its configuration is `settled`.

    Raises:
        ConfigError: If one of them cannot be used.
    """
    phases.begin("loading the libraries")
    from fl_darex.training.session import session, settled, task_of

    phases.begin("loading the data")
    task_of(config)
    phases.begin("loading the model")
    found = session(settled(config))
    phases.end()
    return found
