"""Checkpoints in several files: an index says which, and is not trusted either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_darex.errors import ConfigError
from fl_darex.files.tensors import open_tensors, read_tensors

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, places: dict[str, str] | None = None) -> dict[str, Any]:
    """A checkpoint in two files, with an index, and one more file that is not part of it."""
    tensors = {"a": np.arange(3.0), "b": np.arange(4), "c": np.ones(2, np.float16)}
    save_file({"a": tensors["a"], "b": tensors["b"]}, folder / "model-1-of-2.safetensors")
    save_file({"c": tensors["c"]}, folder / "model-2-of-2.safetensors")
    save_file({"a": np.zeros(9), "d": np.zeros(9)}, folder / "consolidated.safetensors")
    first, second = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    index = {"metadata": {}, "weight_map": places or {"a": first, "b": first, "c": second}}
    (folder / INDEX).write_text(json.dumps(index))
    return tensors


def test_only_the_files_that_an_index_names_are_read(tmp_path):
    tensors = sharded(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    found = read_tensors(tmp_path)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_missing_file_of_an_index_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names 'model-2-of-2.safetensors', which is missing"):
        open_tensors(tmp_path)


def test_a_name_in_two_files_is_an_error_with_an_index_and_without(tmp_path):
    sharded(tmp_path, {"a": "model-1-of-2.safetensors", "d": "consolidated.safetensors"})
    says = "'a' is in both 'consolidated.safetensors' and 'model-1-of-2.safetensors'"
    with pytest.raises(ConfigError, match=says):
        open_tensors(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ConfigError, match=says):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["b", "nowhere"])
def test_a_tensor_that_is_not_where_the_index_says_is_named(tmp_path, name):
    first, second = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    sharded(tmp_path, {"a": first, "c": second} | {name: second})
    with pytest.raises(ConfigError, match=f"puts '{name}' in '.*', where it is not"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("7", "must say in which file"),
        ("{}", "must say in which file"),
        ('{"weight_map": []}', "must say in which file"),
        ('{"weight_map": {"a": 1}}', "'a' is in 1"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "no .safetensors file"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "'../other.safetensors', which is no"),
        ('{"weight_map": {"a": "/other.safetensors"}}', "'/other.safetensors', which is no"),
    ],
)
def test_an_index_that_is_none_or_points_elsewhere_is_refused(tmp_path, content, says):
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ConfigError, match=rf"{INDEX}.*{says}"):
        open_tensors(tmp_path)
