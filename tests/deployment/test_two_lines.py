"""``flwr run`` of an example with the two lines, on a SuperLink: nothing in any log is an error."""

from __future__ import annotations

from example_apps import prepare
from superlink import deployment

from .marks import deployment as marked

pytestmark = marked(600)
SETTINGS = {"num-server-rounds": 1, "batch-size": 360}


def test_flwr_run_with_the_two_lines_logs_no_error_on_either_side(tmp_path):
    app = prepare("sklearn-app", tmp_path / "app", "darex.patch")
    task = app / "sklearn_app" / "task.py"
    task.write_text(task.read_text("utf-8").replace("(2304, 2304)", "(64, 64)"), "utf-8")
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
