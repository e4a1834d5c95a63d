"""Small models on disk, pruned and restored, and what the library's own functions make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fl_darex import deltas
from fl_darex.delta import Delta
from fl_darex.deltas import Pruning, open_checkpoint, open_delta
from fl_darex.pruning import dare, magnitude, structured
from fl_darex.rescaling import rescale
from fl_darex.survivors import Survivors

Tensors = dict[str, torch.Tensor]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def weights(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b.weight": (40, 30), "a.bias": (7,), "c.conv": (4, 3, 5, 5), "d": ()}
    return {
        name: (scale * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in shapes.items()
    }


def moved(base: Tensors, scale: float = 0.01) -> Tensors:
    change = weights(1, scale=scale)
    return {name: (tensor.float() + change[name]).to(tensor.dtype) for name, tensor in base.items()}


def saved(folder: Path, tensors: Tensors, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def there_and_back(
    tmp_path: Path, base: Tensors, tuned: Tensors, how: Pruning
) -> tuple[deltas.Pruned, deltas.DeltaFile, Tensors]:
    before = open_checkpoint(saved(tmp_path / "base", base))
    after = open_checkpoint(saved(tmp_path / "tuned", tuned))
    found = deltas.prune(before, after, tmp_path / "x.darex", how)
    delta = open_delta(tmp_path / "x.darex")
    deltas.apply(before, delta, tmp_path / "out")
    return found, delta, load_file(tmp_path / "out" / "model.safetensors")


def by_the_library(base: Tensors, tuned: Tensors, how: Pruning) -> Survivors:
    delta = Delta(tuned, base, dtype=np.float64 if how.values == "fp64" else np.float32)
    if how.method == "dare":
        found = dare(delta, how.p, seed=how.seed, exact=how.exact)
    elif how.method == "structured":
        found = structured(delta, how.p, how.columns, seed=how.seed)
    else:
        found = magnitude(delta, how.p, scope=how.scope, seed=how.seed)
    return rescale(found, how.q)  # type: ignore[arg-type]


def same(one: Tensors, other: Tensors) -> bool:
    bits = [
        {k: (v.dtype, tuple(v.shape), v.contiguous().view(-1).view(torch.uint8).tolist())}
        for tensors in (one, other)
        for k, v in sorted(tensors.items())
    ]
    return bits[: len(one)] == bits[len(one) :]


HOWS = [
    Pruning(method="dare", p=0.9),
    Pruning(method="dare", p=0.5, values="fp32", q=0.7, seed=9),
    Pruning(method="dare", p=0.8, values="eden2", exact=True),
    Pruning(method="dare", p=0.5, values="fp64"),
    Pruning(method="dare", p=0.0, values="int8"),
    Pruning(method="structured", p=0.9, columns=0.4, values="bf16"),
    Pruning(method="magnitude", p=0.9, values="int4"),
    Pruning(method="magnitude", p=0.9, scope="row", values="sign"),
    Pruning(method="magnitude", p=0.95, scope="global", values="fp32", q=0.5),
]
