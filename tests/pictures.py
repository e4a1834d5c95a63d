"""A tiny vision transformer and pictures for it, made on the spot."""

import io

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

SIDE = 16
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSES = ("cat", "dog", "owl")


def save_processor(folder, **settings):
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessorPil(**{"size": size} | settings).save_pretrained(folder)
    return folder


def save_tiny_vit(folder):
    """A base model without a head, and its image processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**VIT), add_pooling_layer=False)
    model.save_pretrained(folder)
    return save_processor(folder)


def picture(number, mode="RGB", size=(12, 10)):
    """A picture of one class: its main colour is that of ``number``; noise makes it unique."""
    noise = np.random.default_rng(number).integers(0, 60, (size[1], size[0], 3))
    noise[:, :, number % 3] += 180
    return Image.fromarray(noise.astype(np.uint8)).convert(mode)


def encoded(image, format_="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return buffer.getvalue()


def write_folders(folder, split, size, classes=CLASSES):
    """``split/<class>/<number>.png``; classes take turns."""
    for number in range(size):
        target = folder / split / classes[number % len(classes)] / f"{number:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(target)
    return folder


def table(size, image="image", label="label", **columns):
    """Rows as ``datasets`` holds them: pictures, classes with names, and further columns."""
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))}
    rows = {
        image: [{"bytes": encoded(picture(i)), "path": None} for i in range(size)],
        label: [i % len(CLASSES) for i in range(size)],
    }
    for name, values in columns.items():
        rows[name] = [values[i % len(values)] for i in range(size)]
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))
