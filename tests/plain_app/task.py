"""The model, and what a client does to it."""

from __future__ import annotations

import numpy as np

MODEL = {
    "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "b": np.zeros(3, np.float32),
}


def trained(arrays: list[np.ndarray], partition: int, round_: int, lr: float) -> list[np.ndarray]:
    """Move a client's model by a step of its own, the same on every machine."""
    rng = np.random.default_rng([partition, round_])
    steps = [rng.normal(size=array.shape).astype(np.float32) for array in arrays]
    far = 100 if partition == 3 else 1  # what Krum leaves out
    return [a + np.float32(lr * far) * s for a, s in zip(arrays, steps, strict=True)]
