"""Who holds what: the clients' examples by class, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from fl_darex.commands.messages import visible
from fl_darex.config import RunConfig
from fl_darex.shown import counted
from fl_darex.tasks import Task
from fl_darex.tasks.rows import column
from fl_darex.training.loop import steps_per_round

FEW_CLIENTS, FEW_CLASSES = 20, 10
"""A row for each of so many clients, a column for each of so many classes; of more, a summary."""

_WIDTH = 60
"""Letters that the names of classes may take as titles, gaps included: a terminal has 80."""

_SPREAD: tuple[tuple[str, Callable[[NDArray[np.int64]], float]], ...] = (
    ("least", lambda values: float(values.min())),
    ("median", lambda values: float(np.median(values))),
    ("most", lambda values: float(values.max())),
)


@dataclass(frozen=True)
class Shares:
    """The training examples of each client.

    Attributes:
        counts: Examples by client and class, shape ``(clients, classes)``; one column where there
            are no classes.
        classes: What each class is called; empty: there are none.
    """

    counts: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, task: Task, names: Sequence[str] = ()) -> Shares:
        """Return who holds what of a task.

        Args:
            task: The task, partitioned.
            names: What classes are called; where they are not known, classes have numbers.
        """
        classes = task.classes
        labels = np.asarray(column(task.train, "label") if classes else [0] * len(task.train))
        rows = (task.partitions.indices(client) for client in range(task.partitions.clients))
        width = max(1, classes)
        counts = [np.bincount(labels[np.asarray(row, int)], minlength=width) for row in rows]
        known = names if len(names) == classes and "LABEL_0" not in names else range(classes)
        return cls(np.stack(counts).astype(np.int64), tuple(visible(str(one)) for one in known))

    @property
    def examples(self) -> NDArray[np.int64]:
        """Examples of each client."""
        found: NDArray[np.int64] = self.counts.sum(axis=1)
        return found

    def table(self) -> Group:
        """Return a row for each client, or for the least, the median and the most of many."""
        clients = len(self.counts)
        many, titles = clients > FEW_CLIENTS, ["examples"]
        numbers, key = [self.examples], ""
        if self.classes and len(self.classes) <= FEW_CLASSES and not many:
            short = sum(len(name) + 2 for name in self.classes) <= _WIDTH
            titles += self.classes if short else map(str, range(len(self.classes)))
            if not short:
                key = ": " + ", ".join(f"{n} = {name}" for n, name in enumerate(self.classes))
            numbers += [*self.counts.T]
        elif self.classes:
            titles += ["classes", "of the largest class"]
            numbers += [(self.counts > 0).sum(axis=1), self.counts.max(axis=1)]
        kind = "by class" if self.classes else "no classes"
        title = f"examples of {counted(clients, 'client')}, {kind}{key}"
        table = Table("client", box=None)
        for name in titles:
            table.add_column(name, justify="right", overflow="fold")
        if not many:
            for client in range(clients):
                table.add_row(str(client), *(f"{column[client]:,}" for column in numbers))
        for word, pick in _SPREAD if clients > 1 else ():
            table.add_row(word, *(_number(pick(column)) for column in numbers), style="bold")
        return Group(title, table)  # a title of the table itself is as narrow as that

    def steps(self, config: RunConfig) -> str:
        """Return how long clients train in a round, in words."""
        train, own = config.train, np.maximum(self._trained_on(config), 1)
        size = train.batch_size * train.grad_accumulation
        steps = np.array([steps_per_round(train, int(examples)) for examples in own])
        passes = steps * np.minimum(size, own * train.grad_accumulation) / own
        return (
            f"a round: {_span(steps)} optimizer steps on each client, of "
            f"{counted(size, 'example')}: {_span(passes)} times through its own"
        )

    def remarks(self, config: RunConfig) -> Iterator[str]:
        """Yield what may surprise in who holds what."""
        own, size = self._trained_on(config), config.train.batch_size
        if (nothing := int((own <= 0).sum())) and config.compress.holds_out:
            yield (
                f"{nothing} of {len(own)} clients have no more than the "
                f"compress.calibration-examples = {config.compress.calibration_examples} that they "
                "keep out of training, and will fail: set a smaller number"
            )
        elif nothing:
            yield f"{nothing} of {len(own)} clients have no examples"
        if few := int(((own > 0) & (own < size)).sum()):
            yield (
                f"{few} of {len(own)} clients have fewer examples than train.batch-size = {size}, "
                "so their batches are smaller"
            )
        if self.classes and (
            missing := [c for c, n in zip(self.classes, self.counts.sum(0), strict=True) if not n]
        ):
            yield f"no client has an example of class {', '.join(missing[:5])}"

    def _trained_on(self, config: RunConfig) -> NDArray[np.int64]:
        held_out = config.compress.calibration_examples if config.compress.holds_out else 0
        return self.examples - held_out


def _span(numbers: NDArray[Any]) -> str:
    """Return the least and the greatest of some numbers, or the one that they all are."""
    ends = dict.fromkeys(_number(float(number)) for number in (numbers.min(), numbers.max()))
    return " to ".join(ends)


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 or number.is_integer() else f"{number:.3g}"
