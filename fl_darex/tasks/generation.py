"""Greedy answers of a language model to a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.tasks.causal_batches import pad_left
from fl_darex.tasks.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def generate_greedily(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    pad: int,
    stop: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the new tokens for each prompt, without the token that ended them.

    Each next token is the likeliest one: nothing is sampled, and what the checkpoint says of
    temperature, penalties and the like plays no part.

    Args:
        model: In evaluation mode.
        prompts: Tokens of each prompt, none empty.
        pad: The padding token.
        stop: Tokens that end an answer.
        max_new_tokens: Where an answer ends at the latest.
    """
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # has no types
    settings = make(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=list(stop),
        use_cache=True,
    )
    inputs = {key: value.to(model.device) for key, value in pad_left(prompts, pad).items()}
    generating: Any = model  # generate comes from a mixin without types
    before = generating.generation_config
    # An argument would be filled up with the checkpoint's own settings; this leaves none.
    generating.generation_config = settings
    try:
        with quiet():
            tokens = generating.generate(**inputs)
    finally:
        generating.generation_config = before
    start = inputs["input_ids"].shape[1]
    return [_until(row, set(stop)) for row in tokens[:, start:].tolist()]


def _until(tokens: list[int], stop: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]
