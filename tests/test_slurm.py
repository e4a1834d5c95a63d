"""The batch script for Slurm, on one host: `srun` and `scontrol` stand for the cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume_runs import SMALL, fl_darex, weights

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "slurm" / "fl-darex.sbatch"
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\nprintf '127.0.0.1\\nlocalhost\\n'\n"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_batch_script_runs_on_all_its_machines_and_leaves_nothing(tmp_path: Path) -> None:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "small.toml").write_text(SMALL)
    own = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", str(SCRIPT), "small.toml", "federation.rounds=2"]
    environment = os.environ | slurm | {"PATH": own}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Ray runtime started") == 2  # both before the run
    out = tmp_path / "runs" / "12345"
    assert json.loads((out / "summary.json").read_text())["status"] == "finished"
    assert (
        fl_darex(
            "run", "small.toml", "federation.rounds=2", "--engine=local", "--out=here", cwd=tmp_path
        ).returncode
        == 0
    )
    assert weights(out) == weights(tmp_path / "here")
    left = subprocess.run(["pgrep", "-f", "port=32345"], capture_output=True, text=True)
    assert left.stdout == ""
