"""Checkpoints that a client holds, read from files."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from apps import BASE, DirectGrid, numpy_app, rounds
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fl_darex.clients import DarexMod
from fl_darex.errors import ConfigError
from fl_darex.files.tensors import read_tensors
from fl_darex.strategies import DarexStrategy

ODD = BASE | {
    "half": np.linspace(-2, 2, 7, dtype=np.float16),
    "double": np.array(1 / 3),
    "count": np.arange(3),
    "flag": np.array([True, False]),
    "empty": np.empty((0, 4), np.float32),
}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype
        and one[k].shape == other[k].shape
        and one[k].tobytes() == other[k].tobytes()
        for k in one
    )


def test_an_npz_and_a_safetensors_file_hold_what_was_put_in(tmp_path):
    np.savez(tmp_path / "a.npz", **ODD)
    save_file(ODD, tmp_path / "a.safetensors")
    assert same(read_tensors(tmp_path / "a.npz"), ODD)
    assert same(read_tensors(str(tmp_path / "a.safetensors")), ODD)


def test_a_folder_of_several_files_is_one_model(tmp_path):
    for index, (name, array) in enumerate(ODD.items()):
        save_file({name: array}, tmp_path / f"model-{index:05}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read_tensors(tmp_path), ODD)


def test_bfloat16_comes_back_as_the_float32_that_torch_makes_of_it(tmp_path):
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_torch({"w": tensor}, tmp_path / "b.safetensors")
    assert same(read_tensors(tmp_path / "b.safetensors"), {"w": tensor.float().numpy()})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.npz", None, "cannot be read"),
        ("model.pt", b"", "neither .npz nor .safetensors"),
        ("junk.npz", b"junk", "cannot be read"),
        ("junk.safetensors", b"\xff" * 100, "cannot be read"),
        ("cut.safetensors", b"\x02\0\0\0\0\0\0\0{", "cannot be read"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}.*{says}"):
        read_tensors(tmp_path / name)


def test_pickles_are_never_opened(tmp_path):
    np.savez(tmp_path / "p.npz", w=np.array([print], dtype=object))
    with pytest.raises(ConfigError, match=r"p\.npz.*cannot be read.*allow_pickle"):
        read_tensors(tmp_path / "p.npz")


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no \.safetensors file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "path"])
def test_a_client_that_holds_the_checkpoint_is_never_sent_it(tmp_path, as_path):
    np.savez(tmp_path / "base.npz", **BASE)

    def first_download(mod: DarexMod) -> int:
        flower = FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)
        strategy = DarexStrategy(flower, 0.9)
        rounds(strategy, DirectGrid(numpy_app([mod]), 2), 1)
        assert strategy.counted == 2
        return sum(e.down_bytes for e in strategy.ledger.entries if e.kind == "train")

    whole = first_download(DarexMod())
    assert first_download(DarexMod(as_path(tmp_path / "base.npz"))) < whole / 8


def test_a_path_that_is_not_there_does_not_keep_a_client_out(tmp_path):
    flower = FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)
    strategy = DarexStrategy(flower, 0.9)
    rounds(strategy, DirectGrid(numpy_app([DarexMod(tmp_path / "no.npz")]), 2), 1)
    assert strategy.counted == 2


def test_without_safetensors_the_error_says_what_to_install(tmp_path):
    save_file(BASE, tmp_path / "a.safetensors")
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from fl_darex.files.tensors import read_tensors\n"
        "read_tensors(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
    )
    assert "pip install safetensors" in done.stderr
