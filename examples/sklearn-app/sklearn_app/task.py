"""The model, the data, and how to train and test: NumPy and scikit-learn alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

CLASSES = np.arange(10)

Arrays = list[NDArray[np.float32]]
Examples = tuple[NDArray[np.float32], NDArray[np.int64]]


def make_model(lr: float, batch_size: int) -> MLPClassifier:
    """Return an MLP of 5.5 million parameters; it begins the same on every machine."""
    model = MLPClassifier(
        hidden_layer_sizes=(2304, 2304),
        solver="sgd",
        momentum=0.0,
        learning_rate_init=lr,
        batch_size=batch_size,
        random_state=0,
    )
    # scikit-learn makes the layers when it sees the first examples, in the type that these have.
    blank = np.zeros((batch_size, 64), dtype=np.float32)
    model.partial_fit(blank, np.resize(CLASSES, batch_size), classes=CLASSES)
    return model


def get_arrays(model: MLPClassifier) -> Arrays:
    """Return the weights and the biases of all layers."""
    return [*model.coefs_, *model.intercepts_]


def set_arrays(model: MLPClassifier, arrays: Arrays) -> None:
    """Put weights and biases into a model."""
    layers = len(model.coefs_)
    model.coefs_, model.intercepts_ = arrays[:layers], arrays[layers:]


def load_data(partition_id: int, num_partitions: int) -> tuple[Examples, Examples]:
    """Return a client's share of scikit-learn's digits: four fifths to train, the rest to test."""
    images, labels = load_digits(return_X_y=True)
    mine = np.arange(partition_id, len(labels), num_partitions)
    pixels, classes = np.float32(images[mine] / 16), labels[mine]
    tested = np.arange(len(mine)) % 5 == 0
    return (pixels[~tested], classes[~tested]), (pixels[tested], classes[tested])


def train(model: MLPClassifier, examples: Examples, epochs: int) -> float:
    """Train the model and return the loss of the last epoch."""
    for _ in range(epochs):
        model.partial_fit(*examples)
    return float(model.loss_)


def test(model: MLPClassifier, examples: Examples) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    images, labels = examples
    loss = log_loss(labels, model.predict_proba(images), labels=CLASSES)
    return float(loss), float(model.score(images, labels))
