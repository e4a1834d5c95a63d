"""The one place that touches what is private in Flower: who a process is, what drives a run.

``Message(...)`` on the driver reads `TaskIdentity`, which Flower's own engines set for their
processes; an engine of ours has to do the same.
"""

from __future__ import annotations

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from fl_darex.seeds import derive

SERVER_NODE_ID = SUPERLINK_NODE_ID


def adopt_run(label: str) -> Run:
    """Make this process the driver of a run and return the run.

    Ids are as wide as a deployment's, so that messages weigh the same.
    """
    run_id = derive(0, "run", label) | 1 << 62
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = derive(0, "task", label) | 1 << 62
    run = Run.create_empty(run_id=run_id)
    run.primary_task_id = TaskIdentity.task_id
    return run


def node_id_of(partition: int) -> int:
    """Return the id of a simulated node: stable, and as wide as a deployment's random ids."""
    return derive(0, "node", partition) | 1 << 62


def is_simulated(grid: Grid) -> bool:
    """Return whether a grid is that of Flower's own simulation."""
    return isinstance(grid, InMemoryGrid)
