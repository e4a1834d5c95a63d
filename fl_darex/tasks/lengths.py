"""How many tokens a model takes, found by one forward pass.

A configuration need not say it: RoBERTa has 514 positions, two of which no token can have. A length
that is too large would else end the first round, on whichever client has a long text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fl_darex.errors import ConfigError
from fl_darex.tasks.sources import first_line, quiet

_LEAST = 4  # as task.max-length has it


def check_length(
    name: str, model: Any, inputs: Callable[[int], dict[str, torch.Tensor]], wanted: int, key: str
) -> None:
    """Refuse a length that a model's forward pass does not take.

    Args:
        name: ``task.model``, for messages.
        model: What is called with the inputs; its mode and its gradients stay as they are.
        inputs: Makes an example of so many tokens, as a batch.
        wanted: Tokens at most.
        key: The settings that ask for them, with their values, for messages.

    Raises:
        ConfigError: With the longest that fits.
    """
    problem = _problem(model, inputs(wanted))
    if problem is None:
        return
    fits, fails = _LEAST - 1, wanted
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _problem(model, inputs(middle)) is None:
            fits = middle
        else:
            fails = middle
    if fits < _LEAST:
        raise ConfigError(f"task.model = {name!r}: a first example fails: {problem}")
    raise ConfigError(
        f"{key} is more than task.model = {name!r} can take: its forward pass fails there "
        f"({problem}); allowed: {_LEAST} to {fits}"
    )


@torch.no_grad()
def _problem(model: Any, inputs: dict[str, torch.Tensor]) -> str | None:
    """Return what goes wrong in a forward pass, or None."""
    training = model.training
    model.train(False)
    try:
        with quiet():
            model(**inputs)
    except Exception as error:
        # Models of all kinds fail in as many ways.
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        model.train(training)
    return None
