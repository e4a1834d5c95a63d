"""Ways to bring an update from a client to the server: ours, and what people use today.

Each way has three steps, timed apart: `encode` from the tensors before and after training to
bytes, pruning included; `decode` from bytes to numbers and where they belong; `add` from bytes to
a weighted sum in place. Everything runs in one thread and on float32 tensors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import zstandard
from models import Arrays

from fl_darex.compression import SparseUpdate
from fl_darex.compression.sparse_sum import Share, add_sparse
from fl_darex.compression.weighted_sum import Part
from fl_darex.delta import Delta, Layout
from fl_darex.masks import keep_threshold
from fl_darex.positions import ListedMask, SeededMask
from fl_darex.pruning import dare
from fl_darex.pruning.gather import gather
from fl_darex.pruning.largest import largest
from fl_darex.wire import encode
from fl_darex.wire.packet import open_packet
from fl_darex.wire.reader import Packet

WEIGHT = 0.1
WIDE = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "eden4": 4, "eden1": 1, "sign": 1}
"""Bits of a number, scales not included."""


@dataclass
class Way:
    """One way, for one model and one p; ``wide`` is bytes per surviving value."""

    name: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], Any]
    add: Callable[[bytes], None]
    wide: float | None = None


def seeded(values: str, base: Arrays, tuned: Arrays, p: float, *, exact: bool = False) -> Way:
    """Ours: a seeded mask, so that no positions travel."""
    layout, mask = Layout.of(base), SeededMask(1, 1, 0, keep_threshold(p), exact)
    q, total = mask.keep / 2**32, np.zeros(sum(t.size for t in base.values()), np.float32)

    def read(packet: bytes) -> Any:
        return open_packet(packet, layout, mask, q=q, values=values)

    def write() -> bytes:
        return encode(dare(Delta(tuned, base), p, seed=1, round_=1, exact=exact), values)

    return Way(
        f"fl-darex {values}" + (", exact count" if exact else ""),
        write,
        lambda packet: read(packet).survivors().positions,
        lambda packet: add(total, layout, read(packet)),
        WIDE[values] / 8,
    )


def add(total: Any, layout: Layout, packet: Packet) -> None:
    """Add a packet to a sum, as the server does."""
    share = Share(Part(SparseUpdate.of_packet(packet), 1.0), WEIGHT)
    if add_sparse(total, layout, [share]):
        raise ValueError("the packet does not fit its mask")


def listed(values: str, base: Arrays, tuned: Arrays, p: float) -> Way:
    """Ours: the largest entries, so that positions have to be listed."""
    layout = Layout.of(base)
    count = round(sum(t.size for t in base.values()) * (1 - p))
    total = np.zeros(sum(t.size for t in base.values()), np.float32)

    def write() -> bytes:
        delta = {name: tuned[name] - base[name] for name in sorted(base)}
        where = largest(delta, count)
        return encode(gather(Delta(tuned, base), ListedMask(where), 1.0, where), values)

    def read(packet: bytes) -> Any:
        return open_packet(packet, layout, ListedMask({}), q=1.0, values=values)

    return Way(
        f"fl-darex {values}, listed (top-k)",
        write,
        lambda packet: read(packet).survivors().positions,
        lambda packet: add(total, layout, read(packet)),
        {"fp32": 4, "fp16": 2}[values],
    )


def dense_numpy(base: Arrays, tuned: Arrays) -> Way:
    """Every tensor's change as float32 bytes: what p = 0 costs."""
    total = {name: np.zeros_like(tensor) for name, tensor in base.items()}

    def write() -> bytes:
        return b"".join((tuned[name] - base[name]).tobytes() for name in base)

    def read(data: bytes) -> Arrays:
        found, at = {}, 0
        for name, tensor in base.items():
            found[name] = np.frombuffer(data, np.float32, tensor.size, at).reshape(tensor.shape)
            at += tensor.nbytes
        return found

    def add(data: bytes) -> None:
        for name, change in read(data).items():
            total[name] += change * np.float32(WEIGHT)

    return Way("numpy dense fp32", write, read, add)


def dense_torch(base: Arrays, tuned: Arrays) -> Way:
    """The same with torch.save."""
    before, after = _torch(base), _torch(tuned)
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}

    def write() -> bytes:
        return _saved({name: after[name] - before[name] for name in before})

    def add(data: bytes) -> None:
        for name, change in _loaded(data).items():
            total[name].add_(change, alpha=WEIGHT)

    return Way("torch dense fp32 (torch.save)", write, _loaded, add)


def pruned_torch(before: dict[str, Any], after: dict[str, Any], p: float) -> dict[str, Any]:
    """Prune as MergeLM, peft and the paper's code do: a Bernoulli mask of the full size."""
    pruned = {}
    for name, tensor in before.items():
        delta = after[name] - tensor
        pruned[name] = delta * torch.bernoulli(torch.full_like(delta, 1 - p)) / (1 - p)
    return pruned


def coo(base: Arrays, tuned: Arrays, p: float) -> Way:
    """int64 coordinates of every dimension beside float32, as FL4Health and FedLab send."""
    before, after = _torch(base), _torch(tuned)
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}

    def write() -> bytes:
        sparse = {}
        for name, tensor in pruned_torch(before, after, p).items():
            one = tensor.to_sparse_coo().coalesce()
            sparse[name] = (one.indices().clone(), one.values().clone(), tensor.shape)
        return _saved(sparse)

    def read(data: bytes) -> dict[str, Any]:
        return {
            name: torch.sparse_coo_tensor(*parts, check_invariants=False, is_coalesced=True)
            for name, parts in _loaded(data).items()
        }

    def add(data: bytes) -> None:
        for name, change in read(data).items():
            total[name].add_(change, alpha=WEIGHT)

    return Way("torch COO int64 + fp32", write, read, add, 4)


def csr(base: Arrays, tuned: Arrays, p: float) -> Way:
    """Torch's CSR; a vector is a matrix of one row."""
    before = {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in _torch(base).items()}
    after = {name: tensor.reshape(-1, tensor.shape[-1]) for name, tensor in _torch(tuned).items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}

    def write() -> bytes:
        sparse = {}
        for name, tensor in pruned_torch(before, after, p).items():
            one = tensor.to_sparse_csr()
            parts = (one.crow_indices(), one.col_indices(), one.values())
            # A view would be saved with all of its storage.
            sparse[name] = (*(part.clone() for part in parts), tensor.shape)
        return _saved(sparse)

    def read(data: bytes) -> dict[str, Any]:
        return {
            name: torch.sparse_csr_tensor(*parts, check_invariants=False)
            for name, parts in _loaded(data).items()
        }

    def add(data: bytes) -> None:
        for name, change in read(data).items():
            total[name].add_(change, alpha=WEIGHT)

    return Way("torch CSR int64 + fp32", write, read, add, 4)


def safetensors_sparse(base: Arrays, tuned: Arrays, p: float) -> Way:
    """int32 positions and float32 values of each tensor in one safetensors file."""
    before, after = _torch(base), _torch(tuned)
    total = {name: np.zeros(tensor.size, np.float32) for name, tensor in base.items()}

    def write() -> bytes:
        sparse = {}
        for name, tensor in pruned_torch(before, after, p).items():
            flat = tensor.reshape(-1).numpy()
            where = np.flatnonzero(flat).astype(np.int32)
            sparse |= {f"{name}.where": where, f"{name}.values": flat[where]}
        return bytes(safetensors.numpy.save(sparse))

    def add(data: bytes) -> None:
        found = safetensors.numpy.load(data)
        for name, sums in total.items():
            sums[found[f"{name}.where"]] += found[f"{name}.values"] * np.float32(WEIGHT)

    return Way("safetensors int32 + fp32", write, safetensors.numpy.load, add, 4)


def zstd(base: Arrays, tuned: Arrays, p: float) -> Way:
    """The dense tensor with its zeros, through zstd at its default level."""
    before, after = _torch(base), _torch(tuned)
    plain = dense_numpy(base, tuned)

    def write() -> bytes:
        pruned = pruned_torch(before, after, p)
        data = b"".join(tensor.numpy().tobytes() for tensor in pruned.values())
        return zstandard.ZstdCompressor().compress(data)

    def unpack(data: bytes) -> bytes:
        return zstandard.ZstdDecompressor().decompress(data)

    return Way(
        "zstd of dense with zeros",
        write,
        lambda data: plain.decode(unpack(data)),
        lambda data: plain.add(unpack(data)),
        4,
    )


def mergekit_dare(base: Arrays, tuned: Arrays, p: float) -> Callable[[], Any]:
    """Mergekit's whole DARE operation, tensor by tensor: delta, mask, rescale, add."""
    from mergekit.merge_methods import TensorGroup, get

    method, before, after = get("dare_linear"), _torch(base), _torch(tuned)
    settings = {"weight": {0: 1.0, 1: 1.0}, "density": {0: 1 - p, 1: 1 - p}, "lambda": 1.0}
    settings |= {"rescale": True, "normalize": False, "int8_mask": False}

    def operate() -> None:
        for name, tensor in before.items():
            group = TensorGroup.from_tensors([tensor, after[name]], base_index=0)
            method.merge_group(group, **settings)

    return operate


def bare(base: Arrays, tuned: Arrays, p: float) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what cannot be saved: drawing and gathering in NumPy, and a scatter-add."""
    before = np.concatenate([tensor.reshape(-1) for tensor in base.values()])
    after = np.concatenate([tensor.reshape(-1) for tensor in tuned.values()])
    rng, total = np.random.default_rng(0), np.zeros_like(before)

    def draw() -> np.ndarray:
        uniform = rng.random(int(before.size * (1 - p)))
        gaps = np.floor(np.log(uniform) / np.log(p)).astype(np.int64) + 1
        where = np.cumsum(gaps)
        return where[where < before.size]

    def prune() -> np.ndarray:
        where = draw()
        return (after[where] - before[where]).astype(np.float16)

    where = draw()
    values = (after[where] - before[where]).astype(np.float32)

    def scatter() -> None:
        total[where] += values

    return prune, scatter


def all_ways(base: Arrays, tuned: Arrays, p: float) -> list[Way]:
    """Return ours first, then the peers."""
    ours = [seeded(values, base, tuned, p) for values in WIDE]
    ours += [seeded("fp16", base, tuned, p, exact=True), listed("fp16", base, tuned, p)]
    peers = [dense_numpy(base, tuned), dense_torch(base, tuned)]
    peers += [make(base, tuned, p) for make in (coo, csr, safetensors_sparse, zstd)]
    return ours + peers


def _torch(arrays: Arrays) -> dict[str, Any]:
    return {name: torch.from_numpy(tensor) for name, tensor in arrays.items()}


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def versions() -> str:
    """Return the versions of the peers, as JSON."""
    from importlib import metadata

    names = ("torch", "numpy", "safetensors", "zstandard", "mergekit")
    return json.dumps({name: metadata.version(name) for name in names})
