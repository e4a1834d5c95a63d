"""Diff pruning from the base model to survivors: learn values and gates, cut, fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fl_darex.activations import Batch, in_mode
from fl_darex.analysis.diff_pruning.descent import Group, descend, falling
from fl_darex.analysis.diff_pruning.settings import DiffPruning
from fl_darex.analysis.diff_pruning.sparse_delta import FixedDelta, GatedDelta, Tensors
from fl_darex.analysis.diff_pruning.stateless import Stateless
from fl_darex.delta import Delta, Layout
from fl_darex.masks import keep_threshold
from fl_darex.positions import ListedMask, Positions
from fl_darex.pruning.gather import gather
from fl_darex.pruning.largest import largest
from fl_darex.pruning.scores import kept_count
from fl_darex.seeds import derive
from fl_darex.survivors import Survivors
from fl_darex.training.exchange import exchanged

Loss = Callable[[Stateless, Batch], torch.Tensor]
"""From the model to call and a batch to a scalar."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw, before it changed anything.

    Attributes:
        number: Its number in its stage, from 1.
        fixed: Whether the mask is fixed already (the second of both stages).
        loss: The task's loss, without the penalty.
        nonzero: Expected number of entries behind gates that are not zero; with the mask fixed,
            the number of survivors.
    """

    number: int
    fixed: bool
    loss: float
    nonzero: float


Watch = Callable[[Step], None]


def model_loss(model: Stateless, batch: Batch) -> torch.Tensor:
    """Return the loss that the model itself reports, as those of transformers do.

    Raises:
        ValueError: If it reports none.
    """
    loss = getattr(model(**batch), "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ValueError("the model returns no loss; put labels into the batches, or pass loss=")
    return loss


def diff_prune(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    settings: DiffPruning,
    *,
    loss: Loss = model_loss,
    dense: Iterable[str] = (),
    round_: int = 0,
    slot: int = 0,
    watch: Watch = lambda step: None,
) -> Survivors:
    """Fine-tune a model so that only a share ``1-p`` of its entries changes; return the change.

    1. Values w and gates z are learned together: each step draws the gates and follows the
       gradient of ``loss(base + z * w) + penalty * (expected number of non-zero entries)``.
    2. The ``(1-p) * entries`` largest ``|z * w|`` over all tensors survive, gates at their
       median. Zeros never survive, so there are fewer where more gates than that are closed.
    3. The survivors are fine-tuned with the mask fixed.

    The model is left as it was: tensors, modes and torch's generators. What is trained is what
    clients exchange: frozen parameters stay, tied tensors count once; buffers that change are
    sent by their roles. The same seed, round, slot and thread count give the same result.

    Memory: about 14 numbers for each trained entry while gates are learned (base, value and gate
    with gradients and moments, and what autograd keeps), 5 with the mask fixed; AdamW takes 4.

    Args:
        model: Any module; it runs in training mode.
        batches: Inputs, such that ``model(**batch)`` runs. They are gone through again when they
            end; an iterator, which cannot be, has to last for all steps.
        settings: p, steps and the rest.
        loss: Called with the model to call and a batch; the default is the model's own loss.
        dense: Names of tensors that the base lacks, such as a fresh head: trained and sent whole.
        round_: The federated round; another round, other draws.
        slot: The client's partition.
        watch: Called in each step.

    Returns:
        Survivors with q = 1 at listed positions, to be encoded like any others.

    Raises:
        ValueError: If nothing can be trained, batches run out, or training diverges.
    """
    base = {name: tensor.detach() for name, tensor in exchanged(model).items()}
    trained = {n: base[n] for n, tensor in exchanged(model).items() if tensor.requires_grad}
    if not trained:
        raise ValueError("the model has no trained parameter, so there is nothing to learn")
    whole = tuple(spec.name for spec in Layout.of(base, dense).dense)
    call, stream = Stateless(model), _endless(batches)
    seed = derive(settings.seed, "diff-pruning", round_, slot)
    with _seeded(seed, base.values()), in_mode(model, True):
        delta = _learn(trained, whole, settings, lambda: loss(call, next(stream)), call, watch)
        where = _largest(Delta({**_moved(call, base), **delta}, dense=whole), settings.p)
        kept = {name: where[name] for name in trained if name not in whole}
        fixed = FixedDelta(trained, delta, kept)
        _finetune(fixed, settings, lambda: loss(call, next(stream)), call, watch)
    tuned = {name: call.buffers.get(name, tensor) for name, tensor in base.items()}
    mask = ListedMask(where, settings.seed, round_, slot)
    return gather(Delta({**tuned, **fixed.exact()}, base, whole), mask, 1.0, where)


def _learn(
    base: Mapping[str, torch.Tensor],
    whole: Iterable[str],
    settings: DiffPruning,
    loss: Callable[[], torch.Tensor],
    call: Stateless,
    watch: Watch,
) -> Tensors:
    """Learn values and gates together; return the delta with every gate at its median."""
    gated = GatedDelta(base, whole, alpha=settings.alpha, structured=settings.structured)

    def objective(number: int) -> torch.Tensor:
        call.tensors = gated.sampled()
        task, nonzero = loss(), gated.expected_nonzero()
        watch(Step(number, False, float(task.detach()), float(nonzero.detach())))
        return task + settings.penalty * nonzero.to(task.device, task.dtype)

    values = Group(gated.values.values(), settings.lr, falling(settings.steps))
    gates = Group([*gated.gates.values(), *gated.group_gates.values()], settings.gate_lr)
    descend(objective, [values, gates], settings.steps, settings.max_grad_norm)
    return gated.settled()


def _moved(call: Stateless, base: Mapping[str, torch.Tensor]) -> Tensors:
    """Return how floating-point buffers changed."""
    floats = {n: b for n, b in call.buffers.items() if n in base and b.is_floating_point()}
    return {name: buffer.float() - base[name].float() for name, buffer in floats.items()}


def _largest(change: Delta, p: float) -> dict[str, Positions]:
    """Return the positions of the largest entries of all pruned tensors: the global threshold."""
    tensors = {spec.name: change.whole(spec.name) for spec in change.layout.pruned}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"training diverged: {name!r} is not finite; use a smaller lr")
    numel = sum(tensor.size for tensor in tensors.values())
    return largest(tensors, kept_count(numel, keep_threshold(p)))


def _finetune(
    fixed: FixedDelta,
    settings: DiffPruning,
    loss: Callable[[], torch.Tensor],
    call: Stateless,
    watch: Watch,
) -> None:
    """Train the survivors."""

    def objective(number: int) -> torch.Tensor:
        call.tensors = fixed.tuned()
        task = loss()
        watch(Step(number, True, float(task.detach()), fixed.count))
        return task

    steps, lr = settings.finetune_steps, settings.finetune_lr or settings.lr
    values = Group(fixed.values.values(), lr, falling(steps))
    descend(objective, [values], steps, settings.max_grad_norm)
    if not all(bool(value.isfinite().all()) for value in fixed.values.values()):
        raise ValueError("fine-tuning with the mask fixed diverged; use a smaller finetune_lr")


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    seen = 0
    while True:
        before = seen
        for batch in batches:
            seen += 1
            yield batch
        if seen == before:
            raise ValueError(
                f"batches ended after {seen}, before all steps were done; "
                "pass a list, or an iterator that lasts"
            )


@contextmanager
def _seeded(seed: int, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Seed torch's generators, and put them back."""
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        torch.manual_seed(seed)
        yield
