"""Models of real shapes with made-up numbers: what a wire format costs depends on shapes alone."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def bert_shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a BERT encoder with a pooler: uncased vocabulary, 512 positions."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30522, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        head = f"encoder.layer.{layer}"
        dense = {f"{head}.attention.self.{n}": (width, width) for n in ("query", "key", "value")}
        dense[f"{head}.attention.output.dense"] = (width, width)
        dense[f"{head}.intermediate.dense"] = (4 * width, width)
        dense[f"{head}.output.dense"] = (width, 4 * width)
        for name, shape in dense.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        norms += [f"{head}.attention.output.LayerNorm", f"{head}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


MODELS = {"MiniLM": bert_shapes(6, 384), "BERT-base": bert_shapes(12, 768)}


def base_and_tuned(model: str) -> tuple[Arrays, Arrays]:
    """Return random float32 tensors, and the same with small random changes."""
    rng = np.random.default_rng(0)
    base, tuned = {}, {}
    for name, shape in MODELS[model].items():
        base[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        change = rng.standard_normal(shape, dtype=np.float32) * np.float32(1e-3)
        tuned[name] = base[name] + change
    return base, tuned


def entries(model: str) -> int:
    """Return the number of entries of a model."""
    return sum(int(np.prod(shape)) for shape in MODELS[model].values())
