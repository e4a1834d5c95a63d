"""The same changes in forms that other programs read: CSR matrices, patches, a whole model."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.deltas.applied import apply, check_folder, restored_tensors, survivors_of
from fl_darex.deltas.checkpoints import Checkpoint
from fl_darex.deltas.container import DeltaFile, check_place, open_delta
from fl_darex.deltas.header import Row
from fl_darex.deltas.pruned import Pruned, prune
from fl_darex.deltas.settings import Pruning, Told, silent
from fl_darex.errors import ConfigError
from fl_darex.files.formats import Bfloat16, StoredTensor
from fl_darex.files.tensors import StoredTensors, write_tensors
from fl_darex.wire.codings import coding_of, type_of

FORMS = ("darex", "dense", "csr", "sparse-safetensors")

_SUFFIX = ".safetensors"

Written = dict[str, StoredTensor]


def prune_as(
    form: str,
    base: Checkpoint,
    tuned: Checkpoint,
    out: str | PathLike[str],
    how: Pruning,
    *,
    carry_files: bool = True,
    told: Told = silent,
) -> Pruned:
    """Write what fine-tuning changed, pruned, in a form of `FORMS`; see `prune` for the rest.

    Args:
        form: ``"darex"``: a file for `apply`. ``"dense"``: a model's folder, as `apply` makes it.
            ``"csr"`` and ``"sparse-safetensors"``: as `export` writes them.
        base: The model before fine-tuning.
        tuned: The model after it.
        out: The file, or the folder.
        how: How it is pruned.
        carry_files: Whether small files go along, where the form has a place for them.
        told: Is told what goes on.

    Raises:
        ConfigError: If there is no such form, or as `prune` does.
    """
    if form not in FORMS:
        raise ConfigError(f"format = {form!r}; allowed: {', '.join(FORMS)}")
    if form == "darex":
        return prune(base, tuned, out, how, carry_files=carry_files, told=told)
    place = Path(out).expanduser()
    if form == "dense":
        check_folder(place)
    else:
        check_place(place)
        if place.suffix != _SUFFIX:
            raise ConfigError(f"{str(place)!r} does not end with {_SUFFIX}, as {form} does")
    with _beside(place) as between:
        found = prune(base, tuned, between, how, carry_files=carry_files, told=told)
        delta = open_delta(between)
        if form == "dense":
            apply(base, delta, place, carry_files=carry_files, told=told)
        else:
            export(base, delta, place, form)
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return replace(found, size=sum(path.stat().st_size for path in files))


def export(base: Checkpoint, delta: DeltaFile, out: str | PathLike[str], form: str) -> None:
    """Write a delta as one ``.safetensors`` file for other programs.

    ``"csr"``: of each pruned tensor ``NAME.crow_indices``, ``NAME.col_indices`` (int32, or int64
    where that is too small) and ``NAME.values`` (float32, or float64): its change, survivors over
    q, as a CSR matrix, whose rows are the tensor's first axis; a vector is one row. It is to be
    added. ``"sparse-safetensors"``: ``NAME.indices`` (flat, int32 or int64) and ``NAME.values``, in
    the tensor's own type: the new values at these places, as vLLM's ``SparseWeightPatch`` takes
    them. Tensors that are kept whole stand under their own name with all new values, in both.

    The file's metadata has ``darex``, a JSON text: ``form``, ``base`` (the fingerprint), ``shapes``
    of the pruned tensors and ``tied``, names of tensors by those that equal them.

    Args:
        base: The model that the delta was made against, checked (`check_base`).
        delta: The delta.
        out: The file; it ends with ``.safetensors``.
        form: ``"csr"`` or ``"sparse-safetensors"``.

    Raises:
        ConfigError: If a name would be there twice, or the file has another suffix.
        PacketError: If a packet is damaged.
    """
    rows = delta.header.rows
    after = restored_tensors(base.tensors, delta)
    pruned = [row for row in rows if row.role == "pruned"]
    found: Written = {row.name: after[row.name] for row in rows if row.role in ("dense", "raw")}
    for row in pruned:
        parts = _csr(delta, row) if form == "csr" else _patch(delta, row, after[row.name])
        if odd := parts.keys() & found.keys():
            raise ConfigError(f"{min(odd)!r} is a tensor's own name; {form} has no other for it")
        found |= parts
    told = {
        "form": form,
        "base": delta.header.base.hex(),
        "shapes": {row.name: row.shape for row in pruned},
        "tied": {row.name: row.source for row in rows if row.role == "tied"},
    }
    write_tensors(out, StoredTensors(found), {"darex": json.dumps(told)})


def _csr(delta: DeltaFile, row: Row) -> Written:
    lines = row.shape[0] if len(row.shape) > 1 else 1
    width = row.numel // lines if lines else 0

    def crow() -> NDArray[Any]:
        positions, _ = survivors_of(delta, row)
        return np.searchsorted(positions, np.arange(lines + 1) * width).astype(ends)

    def col() -> NDArray[Any]:
        positions, _ = survivors_of(delta, row)
        return (positions % max(1, width)).astype(places)

    ends, places = _index_type(row.kept), _index_type(width)
    coding = coding_of(delta.packet(row.packet).header.coding)
    wide = "float32" if coding is None else type_of(coding).name
    return {
        f"{row.name}.crow_indices": StoredTensor(ends, (lines + 1,), crow),
        f"{row.name}.col_indices": StoredTensor(places, (row.kept,), col),
        f"{row.name}.values": StoredTensor(wide, (row.kept,), lambda: survivors_of(delta, row)[1]),
    }


def _patch(delta: DeltaFile, row: Row, after: StoredTensor) -> Written:
    places = _index_type(row.numel)

    def values() -> NDArray[Any]:
        return after.stored().reshape(-1)[survivors_of(delta, row)[0]]

    load: Callable[[], NDArray[Any]] = values
    if isinstance(after.load, Bfloat16):
        load = Bfloat16(values)
    return {
        f"{row.name}.indices": StoredTensor(
            places, (row.kept,), lambda: survivors_of(delta, row)[0].astype(places)
        ),
        f"{row.name}.values": StoredTensor(row.dtype, (row.kept,), load),
    }


def _index_type(largest: int) -> str:
    return "int32" if largest < 1 << 31 else "int64"


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """Yield a name for a file that is gone afterwards."""
    between = place.with_name(f"{place.name}.{secrets.token_hex(8)}.part")
    try:
        yield between
    finally:
        with suppress(OSError):
            between.unlink()
