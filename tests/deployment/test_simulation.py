"""The app of this repository under ``flwr run`` in Flower's simulation, from its bundle alone.

The model is that of ``fl-darex run``, bit for bit.
"""

from __future__ import annotations

from superlink import Deployment

from .checkout import imports_fl_darex
from .marks import SLOW, deployment

pytestmark = deployment(3600)


def test_in_flowers_simulation_the_bundle_alone_makes_the_model_of_the_command(
    place, alone, tmp_path
):
    assert not imports_fl_darex(alone)
    flower = Deployment(tmp_path, scripts=alone, path=None)
    try:
        flower.start_superlink("--simulation")
        nodes = ["--federation-config", "num-supernodes=2"]
        run_id = flower.submit(place.checkout, *nodes, "--run-config", str(place.preset))
        flower.finish(run_id, SLOW)
    finally:
        flower.stop()
    assert flower.left() == []
    made = tmp_path / "runs" / run_id / "model" / "model.safetensors"
    assert made.read_bytes() == place.model


def test_a_simulation_with_too_few_nodes_ends_and_says_how_to_get_more(place, alone, tmp_path):
    flower = Deployment(tmp_path, scripts=alone, path=None)
    try:
        flower.start_superlink("--simulation")
        run_id = flower.submit(place.checkout)  # federation.clients = 10, and Flower's 2 nodes
        flower.finish(run_id, SLOW, ends="failed")
        log = flower.log_of(run_id)
    finally:
        flower.stop()
    assert "add --federation-config 'num-supernodes=10' to flwr run" in log
