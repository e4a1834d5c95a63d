"""Checkpoints that a client holds, read from files."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from apps import BASE, numpy_app
from federations import Federation, rounds
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fl_darex.clients import DarexMod
from fl_darex.errors import ConfigError
from fl_darex.files.tensors import open_tensors, read_tensors, write_tensors
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


def test_descriptions_tell_type_and_shape(tmp_path):
    save_file(ODD, tmp_path / "a.safetensors"), np.savez(tmp_path / "a.npz", **ODD)
    for found in (open_tensors(tmp_path / "a.safetensors"), open_tensors(tmp_path / "a.npz")):
        assert len(found) == len(ODD) and set(found) == set(ODD) and "no" not in found
        for name, array in ODD.items():
            described = found.data[name]
            assert (described.dtype, described.shape) == (array.dtype.name, array.shape)
        with pytest.raises(KeyError, match="no"):
            found["no"]


def safetensors_bytes(header: dict[str, Any] | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], first: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


def test_a_file_of_any_size_costs_what_is_read_of_it(tmp_path):
    path, size = tmp_path / "huge.safetensors", 2**36
    header = {"w": entry("U8", [size], 0, size), "b": entry("F32", [2], size, size + 8)}
    path.write_bytes(safetensors_bytes(header, b""))
    start = path.stat().st_size
    os.truncate(path, start + size)  # a hole: it takes no room on the disk
    with path.open("ab") as file:
        file.write(np.array([1.5, -0.0], "<f4").tobytes())
    found = open_tensors(path)
    assert found["b"].tobytes() == np.array([1.5, -0.0], "<f4").tobytes()
    assert found["w"].shape == (size,) and found["w"][size // 2] == 0
    assert not found["w"].flags.writeable


def test_one_tensor_is_read_where_the_others_are_damaged(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, good=np.arange(5), bad=np.full(1000, 7))
    content = bytearray(path.read_bytes())
    content[content.index(np.full(50, 7).tobytes()) + 8] ^= 1
    path.write_bytes(content)
    found = open_tensors(path)
    assert "bad" in found and found.data["bad"].shape == (1000,)
    assert found["good"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"a\.npz' cannot be read: .*CRC"):
        found["bad"]


def test_what_was_read_whole_outlives_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(ODD, path)
    found = read_tensors(path)
    os.truncate(path, 0)  # a memory map would be a bus error now
    assert same(found, ODD)


def test_a_tensor_at_an_odd_place_is_read(tmp_path):
    values = np.array([1.5, np.nan, -0.0])
    header = {"flag": entry("BOOL", [1], 0, 1), "w": entry("F64", [3], 1, 25)}
    content = safetensors_bytes(header, b"\1" + values.tobytes())
    for odd in range(8):
        padded = safetensors_bytes(json.dumps(header) + " " * odd, b"\1" + values.tobytes())
        assert len(padded) == len(content) + odd
        (tmp_path / "a.safetensors").write_bytes(padded)
        found = open_tensors(tmp_path / "a.safetensors")["w"]
        assert found.flags.aligned and found.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_type_that_numpy_lacks_is_named_and_the_other_tensors_are_there(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    save_torch({"w": torch.ones(2), "narrow": torch.ones(3).to(dtype)}, path)
    found = open_tensors(path)
    assert found["w"].tolist() == [1, 1]
    name = found.data["narrow"].dtype
    assert name.startswith("F8_")
    with pytest.raises(ConfigError, match=f"a.safetensors.*'narrow' is of type {name}; convert"):
        found["narrow"]
    with pytest.raises(ConfigError, match=f"'narrow' is of type {name}"):
        write_tensors(tmp_path / "b.safetensors", found)


def test_bfloat16_of_other_packages_in_an_npz_file_is_refused_by_its_type(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.zeros(3, "V2"))
    with pytest.raises(ConfigError, match=r"w\.npy' is of type void16"):
        read_tensors(tmp_path / "a.npz")


def test_booleans_that_are_neither_0_nor_1_are_refused(tmp_path):
    content = safetensors_bytes({"w": entry("BOOL", [2], 0, 2)}, b"\1\2")
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="'w' holds booleans that are neither 0 nor 1"):
        read_tensors(tmp_path / "a.safetensors")


def test_no_memory_is_taken_for_what_a_header_only_claims(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("w.npy", "w") as file:
        claimed = {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
        np.lib.format.write_array_header_1_0(file, claimed)
    with pytest.raises(ConfigError, match=r"'w\.npy' is not as long as its header says"):
        open_tensors(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_in_an_archive_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            with archive.open("w.npy", "w") as file:
                np.lib.format.write_array(file, np.ones(1))
    with pytest.raises(ConfigError, match="'w' is in it twice"):
        open_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_every_damaged_byte_is_an_error_of_ours_or_none(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_tensors(path, {"w": np.arange(3, dtype=np.int16), "b": np.array([True])})
    whole = path.read_bytes()
    assert len(whole) < 1000
    cuts = (whole[:length] for length in range(len(whole)))
    flips = (
        whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :]
        for i, mask in itertools.product(range(len(whole)), (1, 16, 128, 255))
    )
    refused = 0
    for damaged in itertools.chain(cuts, flips):
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except ConfigError as error:
            assert f"a.{suffix}" in str(error)
            refused += 1
    assert refused > len(whole)


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
        rounds(strategy, Federation(numpy_app([mod]), 2), 1)
        assert strategy.counted == 2
        return sum(e.down_bytes for e in strategy.ledger.entries if e.kind == "train")

    whole = first_download(DarexMod())
    assert first_download(DarexMod(as_path(tmp_path / "base.npz"))) < whole / 8


def test_a_file_that_goes_after_the_app_was_loaded_does_not_keep_a_client_out(tmp_path):
    np.savez(tmp_path / "no.npz", **BASE)
    mod = DarexMod(tmp_path / "no.npz")
    (tmp_path / "no.npz").unlink()
    flower = FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)
    strategy = DarexStrategy(flower, 0.9)
    rounds(strategy, Federation(numpy_app([mod]), 2), 1)
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
