"""Local data in place of what the example apps take from the hub: same names, columns and shapes.

The apps find their data with ``datasets.load_dataset``, by themselves or through
``flwr_datasets.FederatedDataset``, and one finds its metric with ``evaluate.load``. `install` puts
its own in the place of both, so that not a line of an app changes; its partitioner, splits and
transforms stay its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_iris

_WORDS = (
    ("wonderful", "moving", "clever", "brilliant", "warm", "funny"),
    ("dull", "boring", "clumsy", "awful", "cold", "silly"),
    ("the", "film", "was", "a", "story", "with", "its", "actors", "and", "music", "very"),
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(w for ws in _WORDS for w in ws)]


def install(examples: int) -> None:
    """Let this process find all data of the apps here.

    Args:
        examples: How many there are of each data set, a fifth of them for tests.
    """

    def load_dataset(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
        found = datasets.DatasetDict(_splits(path, examples))
        return found if split is None else found[split]

    datasets.load_dataset = load_dataset
    datasets.Dataset.batch = _batch_here
    # The package of that name would look for the metric on the hub.
    metrics = ModuleType("evaluate")
    metrics.load = lambda name: _Accuracy()  # type: ignore[attr-defined]
    sys.modules["evaluate"] = metrics


_batch = datasets.Dataset.batch


def _batch_here(self: datasets.Dataset, *args: Any, num_proc: Any = None, **settings: Any) -> Any:
    """Do without more processes: JAX's threads do not survive the fork."""
    return _batch(self, *args, **settings)


@cache
def _splits(path: str, examples: int) -> dict[str, datasets.Dataset]:
    whole = SETS[path](examples).shuffle(seed=0)
    tests = len(whole) // 5
    return {
        "train": whole.select(range(tests, len(whole))),
        "test": whole.select(range(tests)),
    }


def pictures(size: int, mode: str, count: int) -> tuple[list[Image.Image], list[int]]:
    """Return scikit-learn's digits as pictures of another size, and what they show."""
    digits, labels = load_digits(return_X_y=True)
    grey = (digits[:count].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    shown = [Image.fromarray(one).convert(mode).resize((size, size)) for one in grey]
    return shown, labels[:count].tolist()


def _pictures(column: str, size: int, mode: str) -> Callable[[int], datasets.Dataset]:
    def made(count: int) -> datasets.Dataset:
        shown, labels = pictures(size, mode, count)
        labelled = datasets.ClassLabel(num_classes=10)
        columns = datasets.Features({column: datasets.Image(), "label": labelled})
        return datasets.Dataset.from_dict({column: shown, "label": labels}, features=columns)

    return made


def _iris(count: int) -> datasets.Dataset:
    values, species = load_iris(return_X_y=True)
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    columns = dict(zip(names, values.T.tolist(), strict=True))
    return datasets.Dataset.from_dict({**columns, "species": species.tolist()})


def _census(count: int) -> datasets.Dataset:
    """The columns of the census, and an income that depends on some of them."""
    rng = np.random.default_rng(0)
    age, hours = rng.integers(17, 90, count), rng.integers(1, 99, count)
    schooling, gain = rng.integers(1, 17, count), rng.integers(0, 9, count) * 1000
    texts = ("workclass", "education", "marital.status", "occupation", "relationship")
    columns: dict[str, Any] = {"age": age, "fnlwgt": rng.integers(1e4, 1e6, count)}
    columns |= {"education.num": schooling, "capital.gain": gain, "capital.loss": gain[::-1]}
    columns |= {"hours.per.week": hours}
    for name in (*texts, "race", "sex", "native.country"):
        columns[name] = rng.choice(["a", "b", "c"], count)
    rich = age / 30 + schooling / 4 + hours / 30 + gain / 3000 + rng.normal(size=count) > 8
    columns["income"] = np.where(rich, ">50K", "<=50K")
    return datasets.Dataset.from_dict({name: list(column) for name, column in columns.items()})


def _reviews(count: int) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    texts = []
    for label in labels:
        told = [*rng.choice(_WORDS[2], 20), *rng.choice(_WORDS[1 - label], 4)]
        texts.append(" ".join(rng.permutation(told)))
    return datasets.Dataset.from_dict({"text": texts, "label": labels.tolist()})


SETS: dict[str, Callable[[int], datasets.Dataset]] = {
    "uoft-cs/cifar10": _pictures("img", 32, "RGB"),
    "ylecun/mnist": _pictures("image", 28, "L"),
    "zalando-datasets/fashion_mnist": _pictures("image", 28, "L"),
    "hitorilabs/iris": _iris,
    "scikit-learn/adult-census-income": _census,
    "stanfordnlp/imdb": _reviews,
}


class _Accuracy:
    """The metric of that name, of as many batches as there are."""

    def __init__(self) -> None:
        self._right: list[bool] = []

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count a batch."""
        self._right += (predictions == references).tolist()

    def compute(self) -> dict[str, float]:
        """Return the share of right answers."""
        return {"accuracy": float(np.mean(self._right))}


def tiny_bert(folder: Path) -> None:
    """Write a random BERT of bert-tiny's shape, with the words of the reviews, to a folder."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    (folder / "words.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertTokenizerFast(str(folder / "words.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(vocab_size=len(VOCABULARY), hidden_size=128, num_hidden_layers=2)
    config = BertConfig(**shape, num_attention_heads=2, intermediate_size=512)
    BertForSequenceClassification(config).save_pretrained(folder)


def scans(folder: Path) -> None:
    """Write pictures of six kinds to a folder for each kind, as MedNIST has them."""
    shown, labels = pictures(64, "L", 160)
    for index, (picture, label) in enumerate(zip(shown, labels, strict=True)):
        if label < 6:
            kind = folder / f"kind{label}"
            kind.mkdir(parents=True, exist_ok=True)
            picture.save(kind / f"{index}.png")
