"""``flwr run`` of an example with the two lines, on a SuperLink: nothing in any log is an error."""

from __future__ import annotations

import pytest
from example_apps import prepare
from superlink import deployment

# Flower still uses a pattern class that pathspec will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec")
SETTINGS = {"num-server-rounds": 1, "batch-size": 360}


def test_flwr_run_with_the_two_lines_logs_no_error_on_either_side(tmp_path):
    app = prepare("sklearn-app", tmp_path / "app", "darex.patch")
    folder = tmp_path / "flower"
    folder.mkdir()
    with deployment(folder, supernodes=2) as (flower, _):
        run = flower.submit(app, **SETTINGS, out=str(tmp_path / "model.npz"))
        flower.finish(run, timeout=600)
        server = flower.log_of(run)
    clients = [path.read_text("utf-8") for path in sorted(folder.glob("*flower-supernode.log"))]
    everything = [server, *(path.read_text("utf-8") for path in folder.glob("*.log"))]
    assert len(clients) == 2 and all("[RUN" in text or "train" in text for text in clients)
    assert "handshake: 2 nodes, 2 told their partition" in server
    for text in everything:
        assert "ERROR" not in text and "Traceback" not in text, text
    assert (tmp_path / "model.npz").exists()
