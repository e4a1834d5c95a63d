"""A tensor's entries as NumPy numbers, whether it is NumPy's, torch's or one in a file.

torch itself is not imported here, but where one of its tensors comes in. A tensor in a file
(`fl_darex.files.formats.StoredTensor`) reads single entries itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def gather(tensor: Any, positions: Any) -> NDArray[Any]:
    """Return the entries at flat positions inside a tensor, gathered where it lies."""
    if hasattr(tensor, "entries_at"):
        return widened(tensor.entries_at(to_numpy(positions)))
    if not hasattr(tensor, "detach"):
        # Positions come from masks of this tensor; "clip" saves a pass that checks them first.
        return widened(np.asarray(tensor).reshape(-1).take(to_numpy(positions), mode="clip"))
    entries = tensor.detach().reshape(-1)
    if not hasattr(positions, "detach"):
        import torch  # a torch tensor came in, so torch is loaded already

        positions = torch.from_numpy(np.require(positions, requirements="W"))
    return to_numpy(entries.index_select(0, positions.to(entries.device)))


def span(tensor: Any, start: int, end: int) -> NDArray[Any]:
    """Return entries ``start`` to ``end - 1`` of the flattened tensor."""
    if hasattr(tensor, "span"):
        return widened(tensor.span(start, end))
    return to_numpy(tensor.reshape(-1)[start:end])


def flat(tensor: Any) -> NDArray[Any]:
    """Return all entries."""
    return to_numpy(tensor).reshape(-1)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array, of float32 where it is of fewer bits; it may share memory."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds every bfloat16 and float16 exactly.
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    return widened(np.asarray(tensor))


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """Return float32 in place of fewer bits: a difference itself would be rounded in these."""
    narrow = array.dtype.kind == "f" and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
