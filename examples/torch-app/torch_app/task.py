"""The model, the data, and how to train and test."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """An MLP of 5.5 million parameters for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 2304),
            nn.ReLU(),
            nn.Linear(2304, 2304),
            nn.ReLU(),
            nn.Linear(2304, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of the ten classes."""
        return self.layers(images)


def initial_model() -> Net:
    """Return the model before round 1."""
    torch.manual_seed(0)
    return Net()


def load_data(partition_id: int, num_partitions: int, batch: int) -> tuple[DataLoader, DataLoader]:
    """Return a client's share of scikit-learn's digits: four fifths to train, the rest to test."""
    images, labels = load_digits(return_X_y=True)
    mine = torch.arange(partition_id, len(labels), num_partitions)
    pixels = torch.tensor(images / 16, dtype=torch.float32)[mine]
    classes = torch.tensor(labels)[mine]
    tested = torch.arange(len(mine)) % 5 == 0
    return (
        DataLoader(TensorDataset(pixels[~tested], classes[~tested]), batch, shuffle=True),
        DataLoader(TensorDataset(pixels[tested], classes[tested]), 256),
    )


def train(model: Net, examples: DataLoader, epochs: int, lr: float) -> float:
    """Train the model and return the mean loss of a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    losses = []
    for _ in range(epochs):
        for images, labels in examples:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model: Net, examples: DataLoader) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    loss, right = 0.0, 0
    for images, labels in examples:
        scores = model(images)
        loss += cross_entropy(scores, labels, reduction="sum").item()
        right += int((scores.argmax(1) == labels).sum())
    return loss / len(examples.dataset), right / len(examples.dataset)
