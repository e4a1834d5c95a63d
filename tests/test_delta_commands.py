"""``fl-darex prune``, ``apply`` and ``inspect`` as a person uses them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_checkpoints import Tensors, moved, saved, weights
from typer.testing import CliRunner

from fl_darex.cli import app
from fl_darex.commands.progress import bars
from fl_darex.files.formats import StoredTensor
from fl_darex.files.tensors import StoredTensors, write_tensors

COMMAND = [sys.executable, "-c", "from fl_darex.cli import main; main()"]


def fl_darex(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, [*map(str, arguments)])
    return done.exit_code, " ".join(done.stdout.split()), " ".join(done.stderr.split())


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensors:
    monkeypatch.chdir(tmp_path)
    base = weights(0) | {"frozen": torch.ones(4)}
    tuned = moved(weights(0)) | {"frozen": torch.ones(4), "head": torch.ones(2, 3)}
    saved(tmp_path / "base", base, config="{}")
    saved(tmp_path / "tuned", tuned, config='{"a": 1}')
    return tuned


def test_three_commands_take_a_model_there_and_back(models):
    code, out, err = fl_darex("prune", "base", "tuned", "-o", "x.darex", "--p", "0.9")
    size = Path("x.darex").stat().st_size
    assert (code, err) == (0, "")
    assert "note: kept whole, as BASE lacks them: head" in out
    assert re.search(
        rf"x\.darex: {size / 1e6:.3f} MB, 1/\d+ of FINETUNED; \d+ of 1,508 entries", out
    )
    code, out, err = fl_darex("apply", "base", "x.darex", "-o", "out")
    assert (code, out, err) == (0, "model: out", "")
    assert json.loads(Path("out/config.json").read_text()) == {"a": 1}
    code, out, err = fl_darex("inspect", "x.darex", "base")
    assert (code, err) == (0, "")
    for words in (
        "method dare, p 0.9, base base, finetuned tuned",
        "(BASE is that one)",
        "1 tensor as in the base, 0 tied to others",
        "config.json: in the file",
        "head (new) 2x3 6 6 fp16 1 12 16.00 1 1 1",
    ):
        assert words in out, words
    assert re.search(r"b\.weight 40x30 \d+ 1,200 fp16 0\.1 \d+ 16\.00 [\d.]+ [\d.]+ [\d.]+ 3 ", out)


def test_a_report_as_json_needs_no_base(models):
    fl_darex("prune", "base", "tuned", "-o", "x.darex", "--p", "0.9", "--method", "magnitude")
    code, out, err = fl_darex("inspect", "x.darex", "--json")
    told = json.loads(out)
    assert (code, err, told["base_fits"], told["same"]) == (0, "", None, 1)
    rows = {row["name"]: row for row in told["tensors"]}
    assert rows["b.weight"]["kept"] == 120 and rows["b.weight"]["noise"] is None
    assert told["size"] == Path("x.darex").stat().st_size


def test_options_reach_the_file(models):
    options = "--p .5 --method structured --columns .75 --values int8 --q .9 --seed 3 --dense conv"
    code, _, err = fl_darex(
        "prune",
        "base",
        "tuned",
        "-o",
        "x.darex",
        *options.split(),
        "--dense-below",
        "7",
        "--no-files",
    )
    assert (code, err) == (0, "")
    told = json.loads(fl_darex("inspect", "x.darex", "--json")[1])
    rows = {row["name"]: (row["role"], row["values"], row["q"]) for row in told["tensors"]}
    assert rows["c.conv"][0] == rows["a.bias"][0] == "dense" and told["files"] == {}
    assert rows["b.weight"] == ("pruned", "int8", pytest.approx(0.9))
    code, _, _ = fl_darex(
        "prune", "base", "tuned", "-o", "x.safetensors", "--p", ".5", "--format", "csr"
    )
    assert code == 0 and Path("x.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("prune base tuned -o x --p 1", 2, "p = 1.0; allowed: from 0 to below 1"),
        ("prune base tuned -o x --p .5 --method dar", 2, "method = 'dar'; allowed: dare"),
        ("prune base tuned -o x --p .5 --q big", 2, "q must be 'dare'"),
        ("prune base tuned -o x --p .5 --q 2", 2, "q must be 'dare'"),
        ("prune base lost -o x --p .5", 2, "there is no file or folder 'lost'"),
        ("prune base tuned -o x --p .5 --format zip", 2, "format = 'zip'; allowed"),
        ("prune base tuned -o no/x --p .5", 2, "there is no folder 'no'"),
        ("prune base tuned -o base --p .5", 2, "'base' is a folder; name a file"),
        ("apply base lost.darex -o out", 2, "there is no file 'lost.darex'"),
        ("apply base base/config.json -o out", 2, "was not written by fl-darex prune"),
        ("apply tuned x.darex -o out", 2, "'tuned' is not the base of this file"),
        ("apply base x.darex -o base", 2, "'base' is there already"),
        ("apply base bad.darex -o out", 1, "'bad.darex': the file is damaged"),
        ("inspect bad.darex", 1, "'bad.darex': the file is damaged"),
        ("inspect x.darex tuned", 2, "'tuned' is not the base of this file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_with_its_exit_code(models, arguments, code, words):
    fl_darex("prune", "base", "tuned", "-o", "x.darex", "--p", "0.9")
    data = bytearray(Path("x.darex").read_bytes())
    data[50] ^= 1
    Path("bad.darex").write_bytes(data)
    found, out, err = fl_darex(*arguments.split())
    assert (found, out) == (code, "") and words in err, err
    assert err.startswith("error:" if code == 2 else "failed:")
    assert not Path("out").exists() and not Path("x").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_cannot_be_written_is_said_in_a_line(models):
    Path("shut").mkdir(mode=0o500)
    code, _, err = fl_darex("prune", "base", "tuned", "-o", "shut/x", "--p", "0.9")
    assert code == 1 and err.startswith("failed:") and "Permission denied" in err


def test_a_damaged_packet_is_said_with_the_name_of_its_file(models):
    fl_darex("prune", "base", "tuned", "-o", "x.darex", "--p", "0.9")
    from hashlib import blake2b

    data = bytearray(Path("x.darex").read_bytes())
    data[120] ^= 1
    data[-32:] = blake2b(data[:-32], digest_size=32).digest()
    Path("x.darex").write_bytes(data)
    for arguments in ("inspect x.darex", "apply base x.darex -o out"):
        code, _, err = fl_darex(*arguments.split())
        assert code == 1 and err.startswith("failed: 'x.darex': the packet was damaged"), err
    assert not list(Path().glob("out*"))


def test_bars_are_shown_on_a_terminal_alone():
    for terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=80)
        with bars(console) as told:
            told("pruning", 1, 4)
            told("pruning", 4, 4)
        assert ("pruning" in text.getvalue()) == terminal


def big(folder: Path, seed: int, size: int = 64) -> Path:
    """A model of so many MiB in tensors of 4 MiB."""
    folder.mkdir()

    def tensor(number: int) -> StoredTensor:
        def load() -> np.ndarray:
            rng = np.random.default_rng([number, seed])
            return rng.integers(-(2**15), 2**15, (1024, 1024)).astype(np.float32) / 2**20

        return StoredTensor("float32", (1024, 1024), load)

    tensors = {f"layer.{number:03}": tensor(number) for number in range(size // 4)}
    write_tensors(folder / "model.safetensors", StoredTensors(tensors))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["prune base tuned -o x.darex --p 0", "apply base y.darex -o x"]
)
def test_a_kill_in_the_middle_leaves_no_half_file(tmp_path, command):
    big(tmp_path / "base", 0), big(tmp_path / "tuned", 1)
    run = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}}
    made = "prune base tuned -o y.darex --p .5 --values fp32"
    subprocess.run([*COMMAND, *made.split()], check=True, **run)
    with subprocess.Popen([*COMMAND, *command.split()], **run) as process:
        end = time.monotonic() + 60
        while not any(file.stat().st_size for file in tmp_path.rglob("x*.part*/**/*")) and not any(
            file.stat().st_size for file in tmp_path.glob("x*.part") if file.is_file()
        ):
            assert process.poll() is None and time.monotonic() < end
        process.send_signal(signal.SIGKILL)
    left = {path.name for path in tmp_path.iterdir()} - {"base", "tuned", "y.darex"}
    assert len(left) == 1 and left.pop().endswith(".part")


MEASURED = """
import sys, threading, time
from fl_darex.deltas import Pruning, apply, open_checkpoint, open_delta, prune

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) >> 10

start, peak = anonymous(), 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
base, tuned = open_checkpoint("base"), open_checkpoint("tuned")
prune(base, tuned, "x.darex", Pruning(method=sys.argv[1], p=float(sys.argv[2]), scope=sys.argv[3]))
apply(base, open_delta("x.darex"), "out-" + "-".join(sys.argv[1:]))
print(peak - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="says how much memory is used")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Four million survivors at a time are what is held, of a model of any size."""
    big(tmp_path / "base", 0, 256), big(tmp_path / "tuned", 1, 256)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for how in ("dare .99 layer", "dare .9 layer", "magnitude .99 layer", "magnitude .9 global"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *how.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) < (120 if ".99" in how else 220), how
