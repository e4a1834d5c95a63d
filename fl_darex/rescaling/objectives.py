"""What a search for q looks at: the change of outputs (1/q_e) or a validation metric (1/q_v)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fl_darex.activations import Batch, evaluating

Output = Callable[[Any], torch.Tensor]
Distance = Literal["absolute", "squared"]


def last_output(result: Any) -> torch.Tensor:
    """Return a model's last layer: ``last_hidden_state``, ``logits``, or the tensor itself.

    Raises:
        ValueError: If there is none of them.
    """
    if isinstance(result, torch.Tensor):
        return result
    for name in ("last_hidden_state", "logits"):
        if isinstance(found := getattr(result, name, None), torch.Tensor):
            return found
    raise ValueError(
        f"a {type(result).__name__} has neither last_hidden_state nor logits; give a function "
        "`output` that takes the tensor to compare from it"
    )


class OutputChange:
    """How far a model's last layer is from that of the fine-tuned model: the objective of 1/q_e.

    ``E_x |f(theta')^L - f(theta_F)^L|``, the mean over all entries of the last layer's output
    ("DARE the Extreme", Alg. 2); no labels are needed. The fine-tuned outputs are computed once,
    when the object is made: **the model must hold the fine-tuned values then.** Calling the
    object scores the model as it is at that moment, in evaluation mode. Padding (tokens whose
    ``attention_mask`` is 0) does not count.

    Take batches from training data or any other text, never from the test set.

    Args:
        model: Runs as ``model(**batch)``; the whole model or a part such as ``model.bert``.
        batches: Inputs; ``labels`` are left out. The paper uses one fixed batch.
        output: Takes the tensor to compare from what the model returns.
        distance: ``"absolute"`` (the paper), or ``"squared"``.
        top: Compare only the so many largest entries of the fine-tuned output in each place, such
            as the logits of the likeliest tokens (the official code for decoders: 5, squared);
            0: all.

    Raises:
        ValueError: If there is no batch or no entry to compare, or an option is out of range.
    """

    larger_is_better = False

    def __init__(
        self,
        model: torch.nn.Module,
        batches: Iterable[Batch],
        *,
        output: Output = last_output,
        distance: Distance = "absolute",
        top: int = 0,
    ) -> None:
        if distance not in (known := get_args(Distance)):
            raise ValueError(f"distance must be one of {known}, got {distance!r}")
        if top < 0:
            raise ValueError(f"top must be at least 0, got {top!r}")
        self.model, self._output, self._squared = model, output, distance == "squared"
        self._batches = _unlabelled(batches, model)
        with evaluating(model), torch.no_grad():
            self._references = [self._reference(batch, top) for batch in self._batches]
        if not sum(reference.values.numel() for reference in self._references):
            raise ValueError("there is no output to compare; at least one batch is needed")

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __call__(self) -> float:
        """Return the mean distance over all batches."""
        total, count = 0.0, 0
        with evaluating(self.model), torch.no_grad():
            for index in range(len(self)):
                distances = self._distances(index)
                total += float(distances.sum(dtype=torch.float64))
                count += distances.numel()
        return total / count

    def loss(self, index: int) -> torch.Tensor:
        """Return the mean distance over one batch, differentiable, in the model's current mode."""
        return self._distances(index).mean()

    def _distances(self, index: int) -> torch.Tensor:
        reference = self._references[index]
        found = self._output(self.model(**self._batches[index]))
        gap = _pick(found, reference.rows, reference.largest).float() - reference.values
        return gap.square() if self._squared else gap.abs()

    def _reference(self, batch: Batch, top: int) -> Reference:
        found = self._output(self.model(**batch)).detach()
        mask, rows, largest = batch.get("attention_mask"), None, None
        if mask is not None and found.shape[:-1] == mask.shape and not bool(mask.all()):
            rows = mask.reshape(-1).nonzero().squeeze(1).to(found.device)
        if top:
            largest = _rows(found, rows).topk(min(top, found.shape[-1]), dim=-1).indices
        return Reference(_pick(found, rows, largest).float(), rows, largest)


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs of the fine-tuned model on one batch.

    Attributes:
        values: Those that are compared, float32.
        rows: Which rows of the output count; None: all.
        largest: Which entries of each row; None: all.
    """

    values: torch.Tensor
    rows: torch.Tensor | None
    largest: torch.Tensor | None


class Validation:
    """A metric on labelled data that was held out of training: the objective of 1/q_v.

    Never the test set: q is chosen by it.

    Args:
        metric: Scores the model as it is, such as a closure over the model and its data.
        larger_is_better: False for a loss or an error.
    """

    def __init__(self, metric: Callable[[], float], *, larger_is_better: bool = True) -> None:
        self._metric = metric
        self.larger_is_better = larger_is_better

    def __call__(self) -> float:
        """Return the metric of the model as it is."""
        return self._metric()

    @classmethod
    def on(
        cls,
        model: torch.nn.Module,
        batches: Iterable[Batch],
        metric: Callable[[NDArray[Any], NDArray[Any]], float],
        *,
        output: Output = last_output,
        larger_is_better: bool = True,
    ) -> Validation:
        """Return the objective for a metric of outputs and labels, over all batches at once.

        Args:
            model: Runs as ``model(**batch)``.
            batches: Inputs with ``labels``.
            metric: Takes outputs ``(examples, ...)`` and labels ``(examples, ...)`` as arrays.
            output: Takes the outputs from what the model returns.
            larger_is_better: False for a loss or an error.

        Raises:
            ValueError: If there is no batch, or one has no labels.
        """
        kept = list(batches)
        if not kept or any("labels" not in batch for batch in kept):
            raise ValueError("validation needs at least one batch, and 'labels' in each of them")
        labels = np.concatenate([batch["labels"].cpu().numpy() for batch in kept])
        inputs = _unlabelled(kept, model)

        def score() -> float:
            with evaluating(model), torch.no_grad():
                found = [output(model(**batch)).float().cpu().numpy() for batch in inputs]
            return metric(np.concatenate(found), labels)

        return cls(score, larger_is_better=larger_is_better)


def _unlabelled(batches: Iterable[Batch], model: torch.nn.Module) -> list[Batch]:
    """Return the batches without ``labels``, on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return [{k: v.to(device) for k, v in batch.items() if k != "labels"} for batch in batches]


def _rows(output: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    flat = output.reshape(-1, output.shape[-1])
    return flat if rows is None else flat.index_select(0, rows)


def _pick(
    output: torch.Tensor, rows: torch.Tensor | None, largest: torch.Tensor | None
) -> torch.Tensor:
    """Return the entries of an output that are compared."""
    if largest is not None:
        return _rows(output, rows).gather(-1, largest)
    return output if rows is None else _rows(output, rows)
