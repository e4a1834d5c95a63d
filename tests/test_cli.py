"""The command as a person uses it: a process, its exit code, its output, its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import with_variable

COMMAND = [sys.executable, "-c", "from fl_darex.cli import main; main()"]
SMALL = """
[federation]
clients = 3
rounds = 2

[train]
local-steps = 2
"""


def fl_darex(*arguments: str, cwd: Path, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.toml").write_text(SMALL)
    track = ["--track=tensorboard"] * 2 if find_spec("tensorboard") else []
    done = fl_darex("run", "small.toml", "--out", "out", *track, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_a_run_prints_progress_and_a_table(finished: tuple[Path, str]) -> None:
    _, printed = finished
    assert "before round 1: accuracy 0.1222" in printed
    assert "round 1: clients 3/3  accuracy" in printed
    assert "accuracy, final" in printed
    assert "up " in printed and "ratio" in printed


def test_a_tracked_run_is_in_tensorboard_with_the_bytes_of_its_summary(
    finished: tuple[Path, str],
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert events.Scalars("bytes/total_so_far")[-1].value == summary["total_bytes"]
    assert [event.step for event in events.Scalars("accuracy")] == [0, 1, 2]
    (text,) = events.Tensors("summary/text_summary")
    assert b"| status | finished |" in text.tensor_proto.string_val[0]


def test_the_run_folder_holds_what_the_contract_says(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rounds = lines(folder / "rounds.jsonl")
    wanted = {"round", "metric", "loss", "clients", "failures", "up_bytes", "down_bytes"}
    wanted |= {"dense_up_bytes", "dense_down_bytes", "q", "seconds"}
    assert [row["round"] for row in rounds] == [1, 2]
    assert all(wanted <= set(row) for row in rounds)
    summary = json.loads((folder / "summary.json").read_text())
    wanted = {"metric_name", "final_metric", "best_metric", "rounds", "up_bytes", "down_bytes"}
    wanted |= {"total_bytes", "dense_total_bytes", "up_ratio", "total_ratio", "seconds"}
    assert wanted | {"seed", "versions"} <= set(summary)
    assert summary["status"] == "finished"
    assert (folder / "plots" / "metric-by-round.png").stat().st_size > 1000
    assert (folder / "plots" / "metric-by-megabytes.png").stat().st_size > 1000


def test_every_exchange_is_a_line_and_the_lines_add_up(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    exchanges = lines(folder / "clients.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    trained = [row for row in exchanges if row["kind"] == "train"]
    asked = [row for row in exchanges if row["kind"] == "handshake"]
    assert [(row["round"], row["client"]) for row in trained] == [
        (round_, client) for round_ in (1, 2) for client in range(3)
    ]
    assert sorted(row["client"] for row in asked) == [0, 1, 2]
    for key in ("up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes"):
        assert sum(row[key] for row in trained) == summary[key]  # type: ignore[misc]
    for round_, row in enumerate(lines(folder / "rounds.jsonl"), start=1):
        mine = [e["up_bytes"] for e in trained if e["round"] == round_]
        assert row["up_bytes"] == sum(mine)  # type: ignore[arg-type]
    extra = sum(row["up_bytes"] + row["down_bytes"] for row in asked)  # type: ignore[operator]
    assert summary["handshake_bytes"] == extra
    assert summary["up_ratio"] > 100


def test_the_saved_model_loads_and_scores_the_final_metric(finished: tuple[Path, str]) -> None:
    import torch
    from transformers import ViTForImageClassification

    from fl_darex.config import load_config
    from fl_darex.tasks import load_task

    folder, _ = finished
    task = load_task(load_config(folder / "config.toml"))
    model = ViTForImageClassification.from_pretrained(folder / "model").eval()
    batch = task.collate(list(task.evaluation))
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    score = task.score(logits, batch["labels"].numpy())
    summary = json.loads((folder / "summary.json").read_text())
    assert score["accuracy"] == pytest.approx(summary["final_metric"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [["resources.actors=1"], ["--engine", "flower"]], ids=["one actor", "flower"]
)
def test_one_actor_and_flowers_engine_give_the_same_bits(
    extra: list[str], finished: tuple[Path, str]
) -> None:
    folder, _ = finished
    done = fl_darex("run", "small.toml", "--out", f"same-{extra[-1]}", *extra, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert weights(folder.parent / f"same-{extra[-1]}") == weights(folder)


@pytest.mark.slow
def test_another_seed_gives_another_model(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    arguments = ["run", "small.toml", "federation.seed=1", "--out", "other"]
    assert fl_darex(*arguments, cwd=folder.parent).returncode == 0
    assert weights(folder.parent / "other") != weights(folder)


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = fl_darex("run", "out/config.toml", "--out", "again", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert weights(folder.parent / "again") == weights(folder)


@pytest.mark.slow
def test_clients_can_evaluate_and_sampling_and_other_options_work(config: Path) -> None:
    settings = ["federation.evaluate=clients", "federation.clients-per-round=2"]
    settings += ["federation.partition=dirichlet", "train.warmup=0.5", "train.schedule=cosine"]
    settings += ["server.strategy=fedadam", "server.lr=0.01", "compress.mask=round"]
    settings += ["train.anchor=pretrained", "train.precision=bf16", "train.grad-accumulation=2"]
    done = fl_darex("run", "small.toml", *settings, "--out", "out", cwd=config.parent)
    assert done.returncode == 0, done.stderr
    rounds = lines(config.parent / "out" / "rounds.jsonl")
    assert all(row["clients"] == 2 and row["failures"] == 0 for row in rounds)
    assert all(0 <= row["metric"] <= 1 for row in rounds)  # type: ignore[operator]
    kinds = [row["kind"] for row in lines(config.parent / "out" / "clients.jsonl")]
    assert kinds.count("evaluate") == 6 and kinds.count("train") == 4


MISTAKES = {
    "unknown key": (["compress.pp=0.9"], r"'compress.pp'; did you mean 'compress.p'"),
    "key without section": (["lr=1"], "did you mean 'train.lr'"),
    "wrong type": (["federation.rounds=many"], "federation.rounds = 'many' is not allowed"),
    "p of 1": (["compress.p=1"], "compress.p = 1"),
    "too many clients": (["federation.clients-per-round=9"], "federation.clients-per-round = 9"),
    "no override": (["compress.p"], "write key=value"),
    "too many GPUs": (["resources.num-gpus=64"], "resources.num-gpus = 64"),
    "too many cores": (["resources.num-cpus=4096"], "resources.num-cpus = 4096, but this machine"),
    "too many examples set apart": (
        ["compress.q=q-v", "compress.calibration-examples=449", "--engine=local"],
        "compress.calibration-examples = 449 leaves client 0 nothing of its 449 examples",
    ),
    "no such cluster": (["resources.ray-address=127.0.0.1:9"], "nobody answers there"),
    "more clients than data": (["federation.clients=5000"], "federation.clients"),
}


def test_one_process_gives_the_same_bits_and_bytes_and_starts_no_ray(
    finished: tuple[Path, str], config: Path
) -> None:
    without_ray = "import sys; sys.modules['ray'] = None; from fl_darex.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", without_ray, "run", "small.toml", "--engine=local", "--out=out"],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    local, (folder, _) = config.parent / "out", finished
    assert weights(local) == weights(folder)
    # Ray's workers answer the handshake in any order.
    here, there = (sorted(map(str, lines(one / "clients.jsonl"))) for one in (local, folder))
    assert here == there


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_and_writes_nothing(mistake: str, config: Path) -> None:
    settings, said = MISTAKES[mistake]
    done = fl_darex("run", "small.toml", *settings, "--out", "out", cwd=config.parent)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in config.parent.iterdir()] == ["small.toml"]


TEXT_MISTAKES = {
    "a missing dataset": ("./nowhere", "task.dataset = './nowhere': no such folder"),
    "a missing dataset in a folder": ("data/no", "task.dataset = 'data/no': no such folder in 'da"),
    "a dataset without the columns": ("data", "sentence"),
    "a model that is no text encoder": ("", "task.model"),
}


@pytest.mark.parametrize("mistake", TEXT_MISTAKES)
def test_a_task_that_cannot_be_loaded_is_one_clear_line(
    mistake: str, config: Path, minilm: Path
) -> None:
    from fl_darex.tasks.digits.task import checkpoint_folder

    dataset, said = TEXT_MISTAKES[mistake]
    data = config.parent / "data"
    data.mkdir()
    for name in ("train", "validation"):
        (data / f"{name}.jsonl").write_text('{"words": "a b", "label": 1}\n' * 4)
    model = minilm if dataset else checkpoint_folder()
    settings = ["task.name=text-classification", f"task.dataset={dataset}", f"task.model={model}"]
    done = fl_darex("run", "small.toml", *settings, "--out", "out", cwd=config.parent)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (config.parent / "out").exists()


def test_a_missing_file_and_a_full_folder_are_refused(config: Path) -> None:
    done = fl_darex("run", "none.toml", cwd=config.parent)
    assert done.returncode == 2 and "cannot read the configuration 'none.toml'" in done.stderr
    out = config.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    done = fl_darex("run", "small.toml", "--out", "out", cwd=config.parent)
    assert done.returncode == 2 and "is not an empty folder" in done.stderr
    assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_runs_that_are_started_at_once_have_three_right_folders(config: Path) -> None:
    arguments = ["run", "small.toml", "--engine=local", "federation.rounds=1"]
    begun = [
        subprocess.Popen(
            [*COMMAND, *arguments, f"federation.seed={seed}"],
            cwd=config.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for seed in (1, 2, 3)
    ]
    for process in begun:
        _, problems = process.communicate(timeout=240)
        assert (process.returncode, problems) == (0, b"")
    folders = list((config.parent / "runs").iterdir())
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert sorted(summary["seed"] for summary in summaries) == [1, 2, 3]
    assert all(summary["status"] == "finished" for summary in summaries)
    assert [len(lines(folder / "rounds.jsonl")) for folder in folders] == [1, 1, 1]
    assert [len(lines(folder / "clients.jsonl")) for folder in folders] == [6, 6, 6]
    for folder, summary in zip(folders, summaries, strict=True):
        assert f"\nseed = {summary['seed']}\n" in (folder / "config.toml").read_text()


@pytest.mark.slow
def test_a_reader_who_leaves_does_not_stop_the_run(config: Path) -> None:
    out = config.parent / "out"
    process = subprocess.Popen(
        [*COMMAND, "run", "small.toml", "--engine=local", "--out=out"],
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("loading the libraries: ")
    process.stdout.close()
    problems = process.stderr.read()
    assert process.wait(240) == 0
    assert problems.count("the observer Display failed and the run goes on") == 1
    assert json.loads((out / "summary.json").read_text())["status"] == "finished"
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_there(arguments: list[str], tmp_path: Path) -> None:
    done = fl_darex(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="SIGINT"),
        pytest.param(signal.SIGTERM, id="SIGTERM"),
    ],
)
@pytest.mark.slow
def test_a_signal_leaves_a_readable_folder_and_no_worker(
    number: signal.Signals, config: Path
) -> None:
    out, mark = config.parent / "out", str(config.parent)
    process = subprocess.Popen(
        [*COMMAND, "run", "small.toml", "federation.rounds=2000", "--out", "out"],
        cwd=config.parent,
        env=os.environ | {"FL_DAREX_TEST": mark, "RAY_ADDRESS": "127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (out / "rounds.jsonl").exists() and len(lines(out / "rounds.jsonl")) > 1)
        started = with_variable("FL_DAREX_TEST", mark.__eq__)
        os.kill(process.pid, number)
        printed, problems = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, problems
    assert "Traceback" not in problems
    assert "RAY_ADDRESS = '127.0.0.1:9' is not used" in problems
    assert "what was done so far is in out" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", number.name)
    assert summary["rounds"] == len(lines(out / "rounds.jsonl")) > 1
    if sys.platform == "linux":
        assert len(started) > 2  # the command, Ray's own, its workers
        wait_for(lambda: not with_variable("FL_DAREX_TEST", mark.__eq__), 30)


def wait_for(condition: object, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.2)
