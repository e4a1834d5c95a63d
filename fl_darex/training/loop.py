"""The local training loop: one page, read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import numpy as np
import torch
from flwr.common.logger import log
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR

from fl_darex.config import TrainConfig
from fl_darex.optim import AdamR
from fl_darex.seeds import derive
from fl_darex.training.batches import batch_starts, shuffled
from fl_darex.training.masked import MaskedParameters
from fl_darex.training.optimizer import in_turn, make_optimizer
from fl_darex.training.session import Session

FP16_SCALE = 2.0**10
"""A round has few steps and starts with a scale of its own: torch's 2**16 would lose the first."""

_FP16_SKIPS = 20
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainResult:
    """What a client reports beside its tensors.

    Attributes:
        examples: Examples that the client has; its weight in the average.
        loss: Mean training loss over the steps.
        pull: AdamR's largest decay weight eta*lambda/sqrt(v-bar) in the last step; 0 for AdamW.
    """

    examples: int
    loss: float
    pull: float


def train(
    session: Session,
    partition: int,
    round_: int,
    kept: Mapping[str, NDArray[np.int64]] | None = None,
    whole: Iterable[str] | None = None,
) -> TrainResult:
    """Train the session's model in place on one client's examples for one round.

    All randomness comes from (run seed, round, partition), so the result does not depend on
    what this process did before. ``train.threads`` is set here: torch's sums depend on it.

    Args:
        session: The model and the configuration.
        partition: The client.
        round_: The federated round, from 1.
        kept: Of tensors of which only a part is trained, the sorted flat positions of it, by name;
            None: all is trained.
        whole: Names of the tensors that are sent whole; None: as the configuration says.
    """
    config, seed = session.config.train, session.config.federation.seed
    examples = session.examples(partition)
    steps = steps_per_round(config, len(examples))
    torch.set_num_threads(config.threads)
    torch.manual_seed(derive(seed, "dropout", round_, partition))
    _set_training(session, len(examples), partition)
    _take_turns(session, round_)
    masked = MaskedParameters(in_turn(session), kept)
    optimizer = make_optimizer(session, masked, whole)
    first, total = (round_ - 1) * steps, steps * session.config.federation.rounds
    schedule = LambdaLR(optimizer, learning_rate(config, first, total))
    draw = derive(seed, "batches", round_, partition)
    batches = shuffled(examples, config.batch_size, draw, by_length=config.group_by_length)
    with masked:
        loss = _take(session, masked, schedule, batches, steps)
    pull = max(optimizer.last_pull, default=0.0) if isinstance(optimizer, AdamR) else 0.0
    return TrainResult(len(examples), loss, pull)


def _take(
    session: Session,
    masked: MaskedParameters,
    schedule: LambdaLR,
    batches: Iterator[list[dict[str, Any]]],
    steps: int,
) -> float:
    """Take all steps of a round and return the mean loss over them."""
    config, optimizer = session.config.train, schedule.optimizer
    scaler = torch.amp.GradScaler(
        session.device.type, init_scale=FP16_SCALE, enabled=config.precision == "fp16"
    )
    parameters = masked.in_place_of(session.model.parameters())
    loss, taken, skipped = 0.0, 0, 0
    while taken < steps and skipped <= _FP16_SKIPS:
        some = [next(batches) for _ in range(config.grad_accumulation)]
        mean = _backward(session, some, scaler)
        scaler.unscale_(optimizer)
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        if not _stepped(optimizer, scaler):
            skipped += 1
            continue
        masked.write()
        schedule.step()
        loss, taken = loss + mean / steps, taken + 1
    return loss


def _stepped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Take a step; False: fp16 overflowed, and the optimizer took none."""
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return scaler.get_scale() >= before


def _set_training(session: Session, examples: int, partition: int) -> None:
    """Set the mode for training; of one example no batch has a variance to normalise by."""
    session.model.train()
    norms = [module for module in session.model.modules() if isinstance(module, _NORMS)]
    if examples > 1 or not norms:
        return
    for module in norms:
        module.train(False)
    if not session.said_of_one:
        session.said_of_one = True
        text = (
            "client %s has one example, so batch normalisation goes by its running statistics "
            "there, as at all clients of one example; this is said once"
        )
        log(WARNING, text, partition)


def _take_turns(session: Session, round_: int) -> None:
    """Freeze what the session's adapter lets rest in a round."""
    if session.adapter is not None:
        for name, tensor in session.trained.items():
            tensor.requires_grad_(session.adapter.takes_turn(name, round_))


def _backward(
    session: Session, batches: list[list[dict[str, Any]]], scaler: torch.amp.GradScaler
) -> float:
    """Add up the gradients of one step's batches; return the mean loss over all of them.

    The mean is over the step's examples, or the tokens of a language model: it does not depend
    on how they were cut into batches.
    """
    collated = [session.task.collate(batch) for batch in batches]
    terms = [session.task.loss_terms(inputs) for inputs in collated]
    mean = 0.0
    for inputs, count in zip(collated, terms, strict=True):
        with autocast(session):
            loss = session.model(**on_device(session, inputs)).loss * (count / sum(terms))
        scaler.scale(loss).backward()
        mean += float(loss.detach())
    return mean


def autocast(session: Session) -> torch.autocast:
    """Return the context in which the session's model runs at ``train.precision``."""
    precision = session.config.train.precision
    return torch.autocast(session.device.type, _DTYPES[precision], enabled=precision != "fp32")


def on_device(session: Session, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return inputs where the session's model is."""
    return {name: tensor.to(session.device) for name, tensor in inputs.items()}


def steps_per_round(config: TrainConfig, examples: int) -> int:
    """Return the optimizer steps of one client in one round."""
    if config.local_steps:
        return config.local_steps
    batches = len(batch_starts(examples, config.batch_size))
    return config.local_epochs * math.ceil(batches / config.grad_accumulation)


def learning_rate(config: TrainConfig, first: int, total: int) -> Callable[[int], float]:
    """Return the learning rate's factor by local step, in (0, 1] until the run's last one.

    Args:
        config: Schedule and warm-up.
        first: Steps before this round.
        total: Steps of the whole run; warm-up takes ``train.warmup`` of them.
    """
    warm = math.ceil(config.warmup * total)

    def factor(step: int) -> float:
        if (now := first + step) < warm:
            return (now + 1) / (warm + 1)
        done = min(1.0, (now - warm) / max(1, total - warm))
        if config.schedule == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0

    return factor
