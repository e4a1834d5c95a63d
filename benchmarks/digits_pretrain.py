"""Pre-training of the packaged digits model: ``python benchmarks/digits_pretrain.py``.

A small vision transformer learns the *training* images turned by 90 degrees; no evaluation
image is seen. It then knows strokes and digits, but not upright ones: what is left for
fine-tuning. Takes about a minute on two cores. Another machine or thread count gives other
weights of the same quality; the shipped file is what counts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

from fl_darex.seeds import derive
from fl_darex.tasks.digits.checkpoint import CONFIG, WEIGHTS, materialise
from fl_darex.tasks.digits.task import (
    CLASSES,
    PACKAGED,
    SIDE,
    images_and_labels,
    load_vit,
    split_indices,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ViTForImageClassification

SEED = 1
STEPS = 2500
BATCH = 64
PEAK_LR = 1e-3
_LINE = 100


def turned(images: np.ndarray) -> np.ndarray:
    """Return the images ``(n, 1, 8, 8)`` turned by 90 degrees: the pre-training domain."""
    return np.ascontiguousarray(np.rot90(images, axes=(2, 3)))


def new_model(seed: int) -> ViTForImageClassification:
    """Return the architecture with random weights, about 200,000 of them."""
    from transformers import ViTConfig, ViTForImageClassification

    labels: dict[str, Any] = {"num_labels": CLASSES}  # not among the constructor's typed names
    config = ViTConfig(
        image_size=SIDE,
        num_channels=1,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights"))
        return ViTForImageClassification(config)


def pretrain(steps: int = STEPS, seed: int = SEED) -> ViTForImageClassification:
    """Return a model trained on turned, slightly shifted and noisy training images."""
    images, labels = images_and_labels(split_indices()[0])
    pixels, targets = torch.from_numpy(turned(images)), torch.from_numpy(labels)
    model = new_model(seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    random = torch.Generator().manual_seed(derive(seed, "batches"))
    for _ in range(steps):
        rows = torch.randint(len(targets), (BATCH,), generator=random)
        output = model(pixel_values=_augmented(pixels[rows], random), labels=targets[rows])
        output.loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.train(False)
    return model


@torch.no_grad()
def accuracy(model: PreTrainedModel, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images ``(n, 1, 8, 8)`` that the model classifies rightly."""
    logits = model(pixel_values=torch.from_numpy(images)).logits
    return float((logits.argmax(-1).numpy() == labels).mean())


def pack(weights: bytes) -> str:
    """Return a safetensors file as JSON text: its SHA-256 and its base64 in short lines."""
    text = base64.b64encode(weights).decode("ascii")
    lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
    content = {"sha256": hashlib.sha256(weights).hexdigest(), "base64": lines}
    return json.dumps(content, indent=0) + "\n"


def save(model: ViTForImageClassification, folder: Path) -> None:
    """Write ``config.json`` and the weights, rounded to float16, as JSON into ``folder``."""
    from safetensors.torch import save as to_bytes

    halves = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.to_json_file(folder / CONFIG)
    packed = pack(to_bytes(halves, metadata={"format": "pt"}))
    (folder / f"{WEIGHTS}.json").write_text(packed, encoding="ascii", newline="\n")


def main(
    out: Annotated[Path, typer.Option(help="folder to write the checkpoint to")] = (PACKAGED),
) -> None:
    """Pre-train the digits model and write it to a folder."""
    save(pretrain(), out)
    model = load_vit(str(materialise(out))).model
    images, labels = images_and_labels(split_indices()[1])
    typer.echo(f"turned evaluation images:  {accuracy(model, turned(images), labels):.3f} right")
    typer.echo(f"upright evaluation images: {accuracy(model, images, labels):.3f} right")


def _augmented(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    # Half of the images move by the same -1, 0 or 1 pixel each way; what comes in is background.
    right, down = torch.randint(-1, 2, (2,), generator=random).tolist()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    moved = padded[..., 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE]
    stay = torch.rand(len(images), 1, 1, 1, generator=random) < 0.5
    noise = torch.randn(images.shape, generator=random)
    return torch.where(stay, images, moved) + 0.15 * noise


if __name__ == "__main__":
    typer.run(main)
