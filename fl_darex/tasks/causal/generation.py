"""Greedy answers of a language model to a batch of prompts."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.tasks.causal.batches import pad_left
from fl_darex.tasks.causal.tokens import Tokenization
from fl_darex.tasks.rows import Example
from fl_darex.tasks.sources import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def generate_greedily(
    model: PreTrainedModel, tokens: Tokenization, examples: list[Example], max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens for each prompt, without the token that ended them.

    Each next token is the likeliest one: nothing is sampled, and what the checkpoint says of
    temperature, penalties and the like plays no part.

    Args:
        model: In evaluation mode.
        tokens: Makes the prompts, and knows the tokens that end an answer.
        examples: At least one.
        max_new_tokens: Where an answer ends at the latest.
    """
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # has no types
    settings = make(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokens.pad,
        eos_token_id=list(tokens.stop),
        use_cache=True,
    )
    padded = pad_left(tokens.prompts(examples), tokens.pad)
    inputs = {key: value.to(model.device) for key, value in padded.items()}
    generating: Any = model  # generate comes from a mixin without types
    before = generating.generation_config
    # An argument would be filled up with the checkpoint's own settings; this leaves none.
    generating.generation_config = settings
    try:
        with quiet():
            rows = generating.generate(**inputs)
    finally:
        generating.generation_config = before
    start = inputs["input_ids"].shape[1]
    ended = (takewhile(lambda t: t not in tokens.stop, row) for row in rows[:, start:].tolist())
    return [list(row) for row in ended]
