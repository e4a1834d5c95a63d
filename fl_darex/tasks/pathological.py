"""The partitioner of flwr-datasets that gives each client a fixed number of classes."""

from __future__ import annotations

from typing import Any

from flwr_datasets.partitioner import PathologicalPartitioner

from fl_darex.config import FederationConfig
from fl_darex.seeds import derive

LABEL = "label"


class Dealt(PathologicalPartitioner):  # type: ignore[misc]  # no type hints
    """The library's partitioner with our deal: its own three may leave classes to nobody."""

    def __init__(self, dealt: list[list[Any]], federation: FederationConfig) -> None:
        super().__init__(
            num_partitions=federation.clients,
            partition_by=LABEL,
            num_classes_per_partition=federation.classes_per_client,
            seed=derive(federation.seed, "partition"),
        )
        self._dealt = dealt

    def _determine_partition_id_to_unique_labels(self) -> None:
        self._unique_labels = sorted({label for hand in self._dealt for label in hand})
        self._partition_id_to_unique_labels = dict(enumerate(self._dealt))
