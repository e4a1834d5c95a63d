"""A task: a small net learns which of three spirals a point is on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fl_darex.config import RunConfig
from fl_darex.tasks import Task, prepare


class Net(torch.nn.Module):
    """Any module whose answer has ``loss`` and ``logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(2, 32), torch.nn.Linear(32, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """Return logits, shape (examples, 3), and the mean loss where there are labels."""
        logits = self.out(torch.relu(self.hidden(x)))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return examples; ``label`` lets them be divided by class."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 3
    radius = rng.uniform(0.2, 1, count)
    angle = 2 * np.pi * labels / 3 + 3 * radius + rng.normal(scale=0.1, size=count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    return [{"x": x, "label": int(y)} for x, y in zip(points, labels, strict=True)]


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch: what the net is called with."""
    labels = torch.tensor([example["label"] for example in examples])
    return {"x": torch.from_numpy(np.stack([e["x"] for e in examples])), "labels": labels}


def worst(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the accuracy on the class that is worst, the main result, and on all."""
    right = outputs.argmax(1) == labels
    each = [float(right[labels == c].mean()) for c in range(3)]
    return {"worst": min(each), "all": float(right.mean())}


def spirals(config: RunConfig) -> Task:
    """Return the task: ``task.name = "own_task:spirals"``."""
    parts = {"train": rows(600, 0), "evaluation": rows(150, 1)}
    own: dict[str, Any] = {"metric": worst, "metric_name": "worst", "classes": 3}
    return prepare(config, parts, collate=collate, build=Net, **own)
