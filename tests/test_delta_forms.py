"""The same changes in forms that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import HOWS, TYPES, Tensors, moved, same, saved, there_and_back, weights

from fl_darex import deltas
from fl_darex.deltas import Pruning, open_checkpoint
from fl_darex.errors import ConfigError


def pruned_as(tmp_path: Path, form: str, how: Pruning, kind: str = "bf16") -> tuple[Path, Tensors]:
    """What is written, and what `apply` would make."""
    base = weights(0, TYPES[kind]) | {"frozen": torch.ones(3), "steps": torch.tensor(1)}
    tuned = moved(weights(0, TYPES[kind])) | {"frozen": torch.ones(3), "steps": torch.tensor(2)}
    tuned |= {"new": torch.ones(2, 2), "tied": tuned["b.weight"].clone()}
    expected = there_and_back(tmp_path, base, tuned, how)[2]
    out = tmp_path / ("folder" if form == "dense" else "x.safetensors")
    models = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")
    before = {path.name for path in tmp_path.iterdir()}
    found = deltas.prune_as(form, *models, out, how)
    assert {path.name for path in tmp_path.iterdir()} - before == {out.name}
    weight = out / "model.safetensors" if form == "dense" else out
    assert found.size == weight.stat().st_size
    return weight, expected


def notes_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["darex"])


def test_a_dense_folder_is_what_apply_makes(tmp_path):
    path, expected = pruned_as(tmp_path, "dense", Pruning(method="dare", p=0.8))
    assert same(load_file(path), expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("how", [HOWS[0], HOWS[3], HOWS[-1]], ids=lambda how: how.method)
def test_csr_matrices_are_the_change(tmp_path, how, kind):
    path, expected = pruned_as(tmp_path, "csr", how, kind)
    read, base = load_file(path), load_file(tmp_path / "base" / "model.safetensors")
    told = notes_of(path)
    for name, shape in told["shapes"].items():
        parts = [read.pop(f"{name}.{part}") for part in ("crow_indices", "col_indices", "values")]
        rows = shape[0] if len(shape) > 1 else 1
        wide = torch.float64 if how.values == "fp64" else torch.float32
        assert [part.dtype for part in parts] == [torch.int32, torch.int32, wide]
        size = (rows, int(np.prod(shape)) // rows)
        change = torch.sparse_csr_tensor(*parts, size=size).to_dense().reshape(shape)
        assert torch.equal((base[name].to(wide) + change).to(base[name].dtype), expected[name])
    assert set(read) == {"new", "steps"} and torch.equal(read["steps"], torch.tensor(2))
    assert told["tied"] == {"tied": "b.weight"} and told["form"] == "csr"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("how", [HOWS[0], HOWS[-1]], ids=lambda how: how.method)
def test_patches_put_into_the_base_make_the_model(tmp_path, how, kind):
    path, expected = pruned_as(tmp_path, "sparse-safetensors", how, kind)
    read, model = load_file(path), load_file(tmp_path / "base" / "model.safetensors")
    told = notes_of(path)
    for name in told["shapes"]:
        indices, values = read.pop(f"{name}.indices"), read.pop(f"{name}.values")
        assert indices.dtype == torch.int32 and values.dtype == model[name].dtype
        model[name].view(-1).index_copy_(0, indices.long(), values)
    model |= read
    model |= {name: model[source] for name, source in told["tied"].items()}
    assert same(model, expected)


def test_another_form_or_suffix_is_refused_before_anything_is_pruned(tmp_path):
    model = open_checkpoint(saved(tmp_path / "base", weights(0)))
    how = Pruning(method="dare", p=0.5)
    with pytest.raises(ConfigError, match="format = 'coo'; allowed: darex, dense, csr, sparse-saf"):
        deltas.prune_as("coo", model, model, tmp_path / "x", how)
    with pytest.raises(ConfigError, match=r"x\.csr' does not end with \.safetensors"):
        deltas.prune_as("csr", model, model, tmp_path / "x.csr", how)
    odd = weights(0) | {"b.weight.values": torch.ones(2)}
    models = (
        open_checkpoint(saved(tmp_path / "base", odd)),
        open_checkpoint(saved(tmp_path / "tuned", {k: v + 1 for k, v in odd.items()})),
    )
    with pytest.raises(ConfigError, match=r"'b\.weight\.values' is a tensor's own name"):
        deltas.prune_as(
            "csr",
            *models,
            tmp_path / "x.safetensors",
            Pruning(method="dare", p=0.5, dense=("values",)),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}
