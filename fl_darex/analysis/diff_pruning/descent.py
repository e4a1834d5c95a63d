"""Adam on groups of parameters, each with its own rate, schedule and clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """Return 1."""
    return 1.0


def falling(steps: int) -> Schedule:
    """Return a factor that falls from 1 at step 0 to 0 after ``steps`` steps."""
    return lambda step: max(0.0, 1.0 - step / max(1, steps))


@dataclass(frozen=True)
class Group:
    """Parameters, their learning rate, and its factor at each step."""

    parameters: Iterable[torch.Tensor]
    lr: float
    schedule: Schedule = constant


def descend(
    objective: Callable[[int], torch.Tensor], groups: Sequence[Group], steps: int, max_norm: float
) -> None:
    """Take ``steps`` steps down an objective, which is given the step's number from 1.

    Args:
        objective: Returns a scalar.
        groups: What is trained; the gradient of each is clipped by itself.
        steps: 0 or more.
        max_norm: Norm at which gradients are clipped; 0: not.
    """
    listed = [(list(group.parameters), group) for group in groups]
    listed = [(parameters, group) for parameters, group in listed if parameters]
    optimizer = torch.optim.Adam([{"params": some, "lr": group.lr} for some, group in listed])
    schedule = LambdaLR(optimizer, [group.schedule for _, group in listed])
    for number in range(1, steps + 1):
        optimizer.zero_grad()
        objective(number).backward()  # type: ignore[no-untyped-call]  # torch does not say
        for some, _ in listed if max_norm else ():
            torch.nn.utils.clip_grad_norm_(some, max_norm)
        optimizer.step()
        schedule.step()
