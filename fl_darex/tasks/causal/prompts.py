"""How an example is written for a language model: a prompt, and the answer that it is to learn.

``plain``, the default: questions as ``Question: ...`` and ``Answer:`` (as lm-evaluation-harness
writes GSM8K), instructions in the words of Stanford Alpaca (which MetaMath took over), prompts
as they are. ``chat``: the tokenizer's own chat template. Base models often have such a template
too, without having been trained on it; that is why it is taken on request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.preparation import owner_column
from fl_darex.tasks.readers import Table
from fl_darex.tasks.rows import Example
from fl_darex.tasks.tables import check_text, choose_columns, named_columns, read_parts

if TYPE_CHECKING:
    from datasets import Dataset

# https://github.com/tatsu-lab/stanford_alpaca
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{}\n\n### Response:"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Input:\n{}\n\n### Response:"
)


@dataclass(frozen=True)
class TextFormat:
    """Which columns an example has and what a model is told.

    Attributes:
        columns: The prompt's column and the answer's, or one column that is all to be learned.
        write: Turns the prompt's texts into the plain prompt.
        lead: What the plain template puts between prompt and answer; it counts as answer.
        context: A further column of the prompt that may be missing or empty.
    """

    columns: tuple[str, ...]
    write: Callable[[Sequence[str]], str] = "".join
    lead: str = ""
    context: str = ""

    @property
    def answer(self) -> str:
        """The column that is to be learned."""
        return self.columns[-1]

    @property
    def prompted(self) -> bool:
        """Whether there is a prompt, so that a model can be asked for the answer."""
        return len(self.columns) > 1

    def prompt(self, example: Example) -> str:
        """Return the plain prompt."""
        return self.write(self._asked(example))

    def reply(self, example: Example) -> str:
        """Return what follows the plain prompt."""
        return f"{self.lead}{example[self.answer]}"

    def message(self, example: Example) -> str:
        """Return what a user says in a chat: the prompt's texts, an empty line between them."""
        return "\n\n".join(self._asked(example))

    def _asked(self, example: Example) -> list[str]:
        context = example.get(self.context) if self.context else None
        return [*(example[c] for c in self.columns[:-1]), *([context] if context else [])]


def _question(texts: Sequence[str]) -> str:
    return f"Question: {texts[0]}\nAnswer:"


def _instruction(texts: Sequence[str]) -> str:
    return (_ALPACA if len(texts) == 1 else _ALPACA_INPUT).format(*texts)


_EVERY_ROW = "every row needs one, so fill it in or remove the row"

# The first one whose columns are all there counts.
FORMATS = (
    TextFormat(("question", "answer"), _question, lead=" "),
    TextFormat(("prompt", "completion")),
    TextFormat(("instruction", "output"), _instruction, lead=" ", context="input"),
    TextFormat(("query", "response"), _instruction, lead=" "),
    TextFormat(("text",)),
)


def load_causal_data(config: RunConfig) -> tuple[dict[str, Dataset], TextFormat]:
    """Read the data set of a task: all rows of the splits that play a part, and their format.

    Rows have the format's columns and, where one is set, the owner's column.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    tables = read_parts(config, "a folder with a train file")
    formats = {text_format.columns: text_format for text_format in FORMATS}
    if config.task.text_columns:
        # Names that are known mean what they mean without the setting.
        columns = named_columns("task.text-columns", config.task.text_columns, tables)
        text_format = formats.get(columns, TextFormat(columns))
    else:
        kind = "columns that a language model learns from"
        columns = choose_columns(config.task.dataset, list(tables.values()), list(formats), kind)
        text_format = formats[columns]
    for part, table in tables.items():
        _check_texts(text_format, part, table)
    keep = [*columns, text_format.context, owner_column(config)]
    return {part: table.dataset(keep) for part, table in tables.items()}, text_format


def _check_texts(text_format: TextFormat, split: str, table: Table) -> None:
    """Refuse what is no text or empty: an empty answer teaches a model to say nothing."""
    for column in (*text_format.columns, text_format.context):
        optional = column == text_format.context
        for number, text in enumerate(table.columns.get(column, []), start=1):
            if (optional and text is None) or (
                isinstance(text, str) and (optional or text.strip())
            ):
                check_text(text or "", column, f"row {number} of the {split} data")
                continue
            raise ConfigError(
                f"column {column!r}, row {number} of the {split} data: {text!r} is "
                f"{'empty' if isinstance(text, str) else 'not a text'}; "
                + ("write it in quotes, or leave it empty" if optional else _EVERY_ROW)
            )
