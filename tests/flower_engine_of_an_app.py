"""Run the app of a folder on Flower's own engine, as the process that ``flwr run`` starts does.

Its arguments are the folder, the number of nodes and settings as JSON. Flower's engine ends the Ray
of the whole process, so this is one of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.common.config import get_fused_config_from_dir, get_project_config
from flwr.simulation.run_simulation import EventType, _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


def main(folder: Path, nodes: int, overrides: dict) -> None:
    """Run it."""
    run = Run.create_empty(run_id=1)
    run.primary_task_id, run.override_config = 1, overrides
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    config = get_fused_config_from_dir(folder, overrides)
    components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
    _run_simulation(
        server_app_attr=components["serverapp"],
        client_app_attr=components["clientapp"],
        num_supernodes=nodes,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        app_dir=str(folder),
        run=run,
        server_app_context=Context(1, 1, {}, RecordDict(), config),
        is_app=True,
        exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
