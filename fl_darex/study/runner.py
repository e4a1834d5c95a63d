"""Does the runs of a study: side by side on one Ray, or one after the other in this process.

A run has the same bits whatever runs it, so each is one task: its clients take turns in one
process, and runs, of which a study has many, share the machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fl_darex.observers.run_folder import reason_of
from fl_darex.study.one_run import carry_out
from fl_darex.study.plan import Planned

Outcome = tuple[Planned, str]
"""A run, and in a line what it failed of; empty: it has finished."""

_LOOK = 0.5  # seconds: Ctrl-C is heard in between
_LAST_WORDS = 20.0  # seconds that stopped runs have to write what became of them


class Place(Protocol):
    """Does runs somewhere."""

    def __call__(
        self, out: Path, planned: Sequence[Planned], keep_models: bool
    ) -> Iterator[Outcome]:
        """Do runs, and yield each when it is over.

        Args:
            out: The study's folder.
            planned: The runs, in the order in which they are begun.
            keep_models: Whether final models stay.
        """


def here(out: Path, planned: Sequence[Planned], keep_models: bool) -> Iterator[Outcome]:
    """Do runs in this process, one after the other; see `Place`."""
    for one in planned:
        try:
            carry_out(out / one.folder, one.config.flat(), keep_models)
            yield one, ""
        except Exception as error:
            yield one, reason_of(error)


@contextmanager
def one_ray(address: str) -> Iterator[Place]:
    """Keep one Ray for all runs of a study; yields `on_ray`.

    Args:
        address: Of a cluster, whose machines share the study's folder; empty: a Ray of this
            machine's is started.

    Raises:
        EngineError: If Ray cannot be started.
        ConfigError: If nobody answers at the address.
    """
    from fl_darex.simulation.cluster import connect, disconnect
    from fl_darex.simulation.resources import Resources

    owns = connect(Resources(ray_address=address))
    try:
        yield on_ray
    finally:
        if owns:
            disconnect()


def on_ray(out: Path, planned: Sequence[Planned], keep_models: bool) -> Iterator[Outcome]:
    """Do runs on Ray, as many at once as their ``resources`` let it; see `Place`.

    Whatever ends this stops what still runs; that goes on from its checkpoint the next time.
    """
    import ray

    pending: dict[Any, Planned] = {}
    try:
        for one in planned:
            task: Any = ray.remote(carry_out).options(**_needs(one), max_retries=1)
            reference = task.remote(out.resolve() / one.folder, one.config.flat(), keep_models)
            pending[reference] = one
        while pending:
            ready, _ = ray.wait([*pending], num_returns=1, timeout=_LOOK)
            for reference in ready:
                yield pending.pop(reference), _trouble(reference)
    finally:
        for reference in pending:
            ray.cancel(reference)
        if pending:
            ray.wait([*pending], num_returns=len(pending), timeout=_LAST_WORDS)


def _needs(one: Planned) -> dict[str, float]:
    """Return what a run takes of a machine: what one of its clients does."""
    resources = one.config.resources.for_all
    gpus = resources["num_gpus"]
    return {"num_cpus": resources["num_cpus"], "num_gpus": 1 if gpus == "auto" else gpus}


def _trouble(reference: Any) -> str:
    """Return what a task failed of, in a line; empty: nothing."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayTaskError as error:
        return reason_of(error.cause if isinstance(error.cause, Exception) else error)
    except RayError as error:
        return f"its process died: {reason_of(error)}"
    return ""
