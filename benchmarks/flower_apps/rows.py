"""The example apps: how many clients and examples, which of its own numbers says how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class App:
    """An app of Flower's ``examples/``.

    Attributes:
        needs: The module without which it does not run.
        metric: Name of the app's own number; ``mean``: that of the last model's entries.
        settings: Of its run configuration: all clients take part, so that a run without and one
            with the two lines have the same ones; and where a run takes minutes, fewer rounds.
        clients: Two where the app's own file lets a part of them train: Flower then takes all.
        examples: Of its data set.
        prepare: Puts files into its folder that it would download.
    """

    needs: str
    metric: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    clients: int = 4
    examples: int = 1797
    prepare: Callable[[Path], None] = lambda folder: None


def _tiny_bert(folder: Path) -> None:
    from .local_data import tiny_bert

    tiny_bert(folder / "tiny-bert")


def _scans(folder: Path) -> None:
    from .local_data import scans

    scans(folder / "MedNIST")


ALL = {"fraction-evaluate": 1.0}
APPS: dict[str, App] = {
    "quickstart-pytorch": App(
        "torchvision", "accuracy", {**ALL, "num-server-rounds": 8, "learning-rate": 0.02}
    ),
    "advanced-pytorch": App(
        "wandb", "accuracy", {"fraction-train": 1.0, **ALL, "num-server-rounds": 6}
    ),
    "custom-mods": App(
        "tensorboard", "accuracy", {**ALL, "num-server-rounds": 8, "learning-rate": 0.02}
    ),
    "quickstart-numpy": App("numpy", "mean"),
    "quickstart-sklearn": App("sklearn", "accuracy", {"num-server-rounds": 10}),
    "fl-tabular": App("sklearn", "accuracy"),
    "quickstart-huggingface": App(
        "transformers",
        "accuracy",
        {"model-name": "tiny-bert", "fraction-train": 1.0, **ALL},
        examples=400,
        prepare=_tiny_bert,
    ),
    "quickstart-tensorflow": App("keras", "eval_acc", {"fraction-train": 1.0}, 2, 400),
    "quickstart-jax": App("flax", "eval_acc", clients=2, examples=1280),
    "quickstart-pytorch-lightning": App("pytorch_lightning", "eval_loss", clients=2),
    "quickstart-monai": App(
        "monai",
        "eval_acc",
        {"fraction-train": 1.0, "num-server-rounds": 3, "batch-size": 16},
        2,
        prepare=_scans,
    ),
    "quickstart-fastai": App(
        "fastai", "eval_acc", {"fraction-train": 1.0}, examples=120, clients=2
    ),
    "federated-vae": App("torchvision", "loss"),
    "opacus": App("opacus", "accuracy", examples=600),
    "quickstart-pennylane": App(
        "pennylane",
        "accuracy",
        {"num-server-rounds": 3, "local-epochs": 1, **ALL},
        examples=400,
    ),
    "quickstart-mlx": App("mlx", "accuracy"),
}
