"""The app of this repository on a SuperLink, from its bundle alone and beside a wheel.

The model is that of ``fl-darex run``, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from superlink import Deployment, wait_for

from .checkout import Place, imports_fl_darex
from .marks import SLOW, deployment
from .replay import exchanges, participants

pytestmark = deployment(3600)


def run_on_a_superlink(flower: Deployment, place: Place) -> tuple[Path, str]:
    """Run the preset with a SuperNode too many, whose data are not there; return folder and log."""
    flower.start_superlink()
    lost = flower.start_supernode(2, 3, **{"dataset-path": "/nowhere"})
    wait_for("the third SuperNode", lambda: lost.says("SuperNode ID"), SLOW, flower.logs)
    for partition in range(2):
        flower.start_supernode(partition, 3)
    run_id = flower.submit(place.checkout, "--run-config", str(place.preset))
    flower.finish(run_id, SLOW)
    return flower.folder / "runs" / run_id, flower.log_of(run_id)


@pytest.mark.parametrize("kind", ["alone", "beside"])
def test_on_a_superlink_the_bundle_makes_the_model_of_the_command(place, kind, tmp_path, request):
    scripts = request.getfixturevalue(kind)
    assert imports_fl_darex(scripts) == (kind == "beside")
    flower = Deployment(tmp_path, scripts=scripts, path=None)
    try:
        folder, log = run_on_a_superlink(flower, place)
    finally:
        flower.stop()
    assert flower.left() == []
    assert (folder / "model" / "model.safetensors").read_bytes() == place.model
    # A SuperNode whose data are not there costs its own replies, and the log says why.
    asked = {0: True, 1: True, 2: False}
    assert participants(exchanges(folder)) == {1: asked, 2: asked}
    reason = "dataset-path = '/nowhere' of this SuperNode: no such folder"
    ours = [line for line in log.splitlines() if "client 2 does not count this round" in line]
    assert len(ours) == 2 and all(reason in line for line in ours), log
