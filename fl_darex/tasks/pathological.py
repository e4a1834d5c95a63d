"""The partitioner of flwr-datasets that gives each client a fixed number of classes."""

from __future__ import annotations

from typing import Any

from flwr_datasets.partitioner import PathologicalPartitioner


class Dealt(PathologicalPartitioner):  # type: ignore[misc]  # no type hints
    """The library's partitioner with our deal: its own three may leave classes to nobody.

    Args:
        dealt: The classes of each client, equally many for all.
        column: Where an example's class is.
        seed: Of how a class is divided among those that hold it.
    """

    def __init__(self, dealt: list[list[Any]], column: str, seed: int) -> None:
        super().__init__(
            num_partitions=len(dealt),
            partition_by=column,
            num_classes_per_partition=len(dealt[0]),
            seed=seed,
        )
        self._dealt = dealt

    def _determine_partition_id_to_unique_labels(self) -> None:
        self._unique_labels = sorted({label for hand in self._dealt for label in hand})
        self._partition_id_to_unique_labels = dict(enumerate(self._dealt))
