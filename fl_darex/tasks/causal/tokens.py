"""Texts as tokens for a causal language model, and which of them count in the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fl_darex.errors import ConfigError
from fl_darex.tasks.causal.prompts import TextFormat
from fl_darex.tasks.rows import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that does not count, as torch and transformers have it."""


class Tokens(NamedTuple):
    """An example's tokens and, for each, itself or ``IGNORED`` as label.

    A label stands at its own token; the model predicts it one position earlier. So the first
    label never counts.
    """

    ids: list[int]
    labels: list[int]


class Tokenization:
    """Turns examples into tokens.

    Prompt and answer are tokenized apart and joined as tokens: the prompt's tokens are then the
    same in training and when the model is asked, and the label mask is exact. Of the prompt
    nothing counts, of the answer all, its end token included. An example that is too long loses
    the start of its prompt (all but a start-of-text token); an answer that is too long by itself
    loses its end.

    Args:
        tokenizer: The model's; it has an end token.
        text_format: Which columns examples have.
        max_length: Tokens of an example at most.
        chat: Whether the tokenizer's chat template writes prompt and answer.

    Attributes:
        pad: The padding token.
        stop: Tokens that end an answer.

    Raises:
        ConfigError: If there is no usable chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_format: TextFormat,
        max_length: int,
        chat: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._format = text_format
        self._max_length = max_length
        self._chat = chat
        self.pad = int(tokenizer.pad_token_id)
        self._end = int(tokenizer.eos_token_id)
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        self.stop: tuple[int, ...] = (self._end,)
        if chat:
            self._check_chat()
            probe = self._replies([dict.fromkeys(text_format.columns, "x")])[0]
            self.stop = tuple(sorted({self._end, probe[-1]}))

    def encode(self, examples: list[Example]) -> list[Tokens]:
        """Return tokens and labels; each example has at least one label that counts."""
        if not self._format.prompted:
            texts = [example[self._format.answer] for example in examples]
            return [self._whole(ids) for ids in self._opened(texts)]
        pairs = zip(self._prompts(examples), self._replies(examples), strict=True)
        return [self._joined(prompt, reply) for prompt, reply in pairs]

    def prompts(self, examples: list[Example]) -> list[list[int]]:
        """Return the prompts alone, as the model is asked."""
        return [self._cut(ids, self._max_length) for ids in self._prompts(examples)]

    def _check_chat(self) -> None:
        if not self._format.prompted:
            problem = f"examples with the column {self._format.answer!r} alone have no prompt"
        elif not self._tokenizer.chat_template:
            problem = "the tokenizer of task.model has no chat template"
        else:
            return
        raise ConfigError(f"task.template = 'chat', but {problem}; set task.template = 'plain'")

    def _whole(self, ids: list[int]) -> Tokens:
        ids = [*ids, self._end][: self._max_length]
        return Tokens(ids, [IGNORED, *ids[1:]])

    def _joined(self, prompt: list[int], reply: list[int]) -> Tokens:
        reply = reply[: self._max_length - 1]
        prompt = self._cut(prompt, self._max_length - len(reply))
        return Tokens(prompt + reply, [IGNORED] * len(prompt) + reply)

    def _cut(self, prompt: list[int], room: int) -> list[int]:
        if len(prompt) <= room:
            return prompt
        start = prompt[:1] if prompt[0] == self._tokenizer.bos_token_id and room > 1 else []
        return start + prompt[len(prompt) - room + len(start) :]

    def _prompts(self, examples: list[Example]) -> list[list[int]]:
        if self._chat:
            return self._tokens([self._written(example)[0] for example in examples])
        return self._opened([self._format.prompt(example) for example in examples])

    def _replies(self, examples: list[Example]) -> list[list[int]]:
        if not self._chat:
            found = self._tokens([self._format.reply(example) for example in examples])
            return [[*ids, self._end] for ids in found]
        found = self._tokens([self._written(example)[1] for example in examples])
        return [self._ended(ids) for ids in found]

    def _ended(self, ids: list[int]) -> list[int]:
        """Cut a chat's reply behind its end token: templates add a line break there."""
        last = max((i for i, token in enumerate(ids) if token in self._special), default=-1)
        return [*ids, self._end] if last < 0 else ids[: last + 1]

    def _written(self, example: Example) -> tuple[str, str]:
        """Return prompt and reply as the chat template writes them."""
        said: list[Any] = [{"role": "user", "content": self._format.message(example)}]
        reply = {"role": "assistant", "content": example[self._format.answer]}
        write = self._tokenizer.apply_chat_template
        prompt = str(write(said, tokenize=False, add_generation_prompt=True))
        whole = str(write([*said, reply], tokenize=False))
        if not whole.startswith(prompt):
            raise ConfigError(
                "task.template = 'chat': the tokenizer's chat template writes a prompt in another "
                "way once it is answered, so it cannot be told what to learn; set task.template "
                "= 'plain'"
            )
        return prompt, whole[len(prompt) :]

    def _opened(self, texts: list[str]) -> list[list[int]]:
        """Tokenize with the model's start token, if it has one; without end tokens."""
        opened = []
        for ids in self._tokens(texts, special=True):
            while ids and ids[-1] == self._end:
                ids.pop()
            # A text may have no token at all; something must stand before the answer.
            opened.append(ids or [self._end])
        return opened

    def _tokens(self, texts: list[str], special: bool = False) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=special)["input_ids"]
        return found
