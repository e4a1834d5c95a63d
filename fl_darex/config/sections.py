"""The sections of a configuration: every key, its default, its range, and what goes together."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fl_darex.adapters import ADAPTERS, Adapter
from fl_darex.config.names import names_a_row
from fl_darex.errors import nearest

Rate = Annotated[float, Field(ge=1e-9, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[int, Field(ge=0, le=10**9)]
StepSize = Annotated[float, Field(gt=0.0, le=10.0)]

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}
_AMOUNT = re.compile(rf"(\d{{1,15}}(?:\.\d{{1,9}})?) ?({'|'.join(_UNITS)})?")


def bytes_of(text: str) -> int:
    """Return a number of bytes that is written as ``50 kB``, ``1.5 MB`` or ``800``.

    Raises:
        ValueError: If it is not written so.
    """
    if (found := _AMOUNT.fullmatch(text.strip())) is None:
        raise ValueError(f"{text!r} is no number of bytes")
    return int(float(found[1]) * _UNITS[found[2] or "B"])


def _budget(text: str) -> str:
    try:
        enough = not text or bytes_of(text) > 0
    except ValueError:
        enough = False
    if enough:
        return text
    raise ValueError(
        f"compress.budget = {text!r} is not allowed; allowed: a number of bytes above 0 with "
        f"{', '.join(_UNITS)} or nothing behind it, such as '50 kB'"
    )


Budget = Annotated[str, AfterValidator(_budget)]
"""A number of bytes with its unit, or nothing."""

TASKS = {
    "digits": "digits.task:load_digits_task",
    "text-classification": "text.task:load_text_task",
    "image-classification": "image.task:load_image_task",
    "causal-lm": "causal.task:load_causal_task",
}
"""Where each task is made, in `fl_darex.tasks`; some need many packages, so they load on use."""


def _task(name: str) -> str:
    """Return a name of `TASKS`, or of somebody's own function, as ``"package.module:function"``."""
    if name in TASKS or re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name):
        return name
    raise ValueError(
        f"task.name = {name!r} is not allowed; allowed: {', '.join(map(repr, TASKS))}, or "
        f"'package.module:function'{nearest(name, TASKS)}"
    )


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """A group of settings; immutable, hashable, and strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_kebab,
        populate_by_name=True,
        strict=True,
        allow_inf_nan=False,
    )


class TaskConfig(Section):
    """What is learned: a model, a dataset, and how the result is measured."""

    name: Annotated[str, AfterValidator(_task)] = "digits"
    model: str = Field("", description="hub name or folder; digits: empty = the packaged model")
    dataset: str = Field("", description="hub name or folder; digits: must be empty")
    subset: str = Field("", description="configuration of a hub dataset, e.g. 'sst2'")
    text_columns: str = Field(
        "", description="column with the texts, or two: 'title,body'; empty = by well-known names"
    )
    label_column: str = Field("", description="column with the labels; empty = 'label'")
    metric: Literal[
        "auto",
        "accuracy",
        "matthews",
        "accuracy-f1",
        "pearson-spearman",
        "token-accuracy",
        "exact-match",
        "negative-perplexity",
    ] = "auto"
    max_length: int = Field(128, ge=4, le=8192, description="tokens per example at most")
    max_new_tokens: int = Field(
        256, ge=1, le=8192, description="causal-lm: tokens of a generated answer at most"
    )
    template: Literal["plain", "chat"] = Field(
        "plain", description="causal-lm: how a prompt is written; chat = as the tokenizer says"
    )
    packing: bool = Field(False, description="causal-lm: several training examples in one row")
    holdout: int = Field(
        0, ge=0, description="examples taken out of train for evaluation; 0 = the dataset's own"
    )
    train_examples: int = Field(0, ge=0, description="use that many training examples; 0 = all")
    eval_examples: int = Field(0, ge=0, description="use that many evaluation examples; 0 = all")
    tuning_examples: int = Field(
        0,
        ge=0,
        description="measure on that many training examples instead, taken out of them; 0 = off",
    )
    test: bool = Field(
        False, description="causal-lm: measure the final model on the test split, once"
    )


class FederationConfig(Section):
    """Who takes part, on which part of the data, and for how long."""

    clients: int = Field(10, ge=1, le=1_000_000)
    clients_per_round: int = Field(0, ge=0, description="0 = all clients")
    min_clients: int = Field(
        0, ge=0, description="connected clients that a round waits for; 0 = all clients"
    )
    min_replies: int = Field(
        0, ge=0, description="replies of a round that have to count, or the run ends; 0 = any"
    )
    rounds: int = Field(10, ge=1, le=1_000_000)
    partition: Literal["iid", "dirichlet", "pathological", "natural"] = "iid"
    alpha: float = Field(0.3, gt=0.0, le=1e6, description="Dirichlet: smaller = more skew")
    classes_per_client: int = Field(2, ge=1, description="pathological partition")
    partition_column: str = Field("", description="natural partition: the column with the owner")
    seed: int = Field(0, ge=0, lt=2**63)
    evaluate: Literal["server", "clients", "none"] = "server"
    evaluate_every: int = Field(1, ge=1, description="rounds; the last one always counts")
    timeout: float = Field(3600.0, gt=0.0, description="seconds to wait for a round's replies")
    checkpoint_every: int = Field(
        1, ge=0, le=1_000_000, description="rounds from one checkpoint to the next; 0 = none"
    )
    resume: str = Field("", description="flwr run: the run folder of a run that is to go on")

    @model_validator(mode="after")
    def _sample_fits(self) -> FederationConfig:
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"federation.clients-per-round = {self.clients_per_round} is more than "
                f"federation.clients = {self.clients}; allowed: 0 (all) to {self.clients}"
            )
        if self.partition == "natural" and not self.partition_column:
            raise ValueError(
                "federation.partition = 'natural' needs federation.partition-column, "
                "the dataset column that says who owns an example"
            )
        return self

    @model_validator(mode="after")
    def _enough_come(self) -> FederationConfig:
        if self.min_clients > self.clients:
            raise ValueError(
                f"federation.min-clients = {self.min_clients} is more than federation.clients = "
                f"{self.clients}; allowed: 0 (all) to {self.clients}"
            )
        if self.min_replies > self.sample_size:
            raise ValueError(
                f"federation.min-replies = {self.min_replies}, but {self.sample_size} clients "
                f"train in a round; allowed: 0 (any) to {self.sample_size}"
            )
        return self

    @property
    def needed(self) -> int:
        """Clients that must be connected for a round to begin."""
        return self.min_clients or self.clients

    @property
    def sample_size(self) -> int:
        """Clients that train in a round."""
        return self.clients_per_round or self.clients


class TrainConfig(Section):
    """Local training on a client."""

    optimizer: Literal["adamr", "adamw"] = "adamr"
    lr: StepSize = 1e-3
    dense_lr: Literal["same"] | StepSize = Field(
        "same", description="the lr of tensors that are sent whole, such as a fresh head"
    )
    masked: bool = Field(
        False, description="train only the entries that the round's mask keeps; takes a larger lr"
    )
    local_steps: int = Field(10, ge=0, description="optimizer steps a round; 0 = use epochs")
    local_epochs: int = Field(0, ge=0, description="passes a round, where local-steps is 0")
    batch_size: int = Field(32, ge=1, le=65536)
    eval_batch_size: int = Field(256, ge=1, le=65536)
    group_by_length: bool = Field(
        False, description="batches of texts of like length, which need less padding"
    )
    delta_decay: float = Field(0.1, ge=0.0, le=1e6, description="AdamR's lambda (Eq. 3)")
    norm: Literal["l2", "l1"] = "l2"
    anchor: Literal["round", "pretrained"] = "round"
    weight_decay: float = Field(0.0, ge=0.0, le=10.0, description="AdamW's, towards zero")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type")
    grad_accumulation: int = Field(1, ge=1, le=65536)
    gradient_checkpointing: bool = Field(
        False, description="compute activations again on the way back: less memory, more time"
    )
    max_grad_norm: float = Field(1.0, ge=0.0, description="0 = no clipping")
    warmup: float = Field(0.0, ge=0.0, le=1.0, description="fraction of all steps of the run")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate over all steps of the run"
    )
    threads: int = Field(1, ge=1, le=1024, description="torch threads; part of a run's identity")
    adapter: Annotated[
        str, AfterValidator(names_a_row("train.adapter", ADAPTERS, "auto", "none"))
    ] = Field("auto", description="what is trained; auto: 'lora' where lora-rank is above 0")
    lora_rank: int = Field(
        0, ge=0, le=65536, description="of adapters that have one; 0 = the adapter's own, auto: off"
    )
    lora_alpha: float = Field(16.0, gt=0.0, le=1e6, description="adapters: scaled by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="of an adapter's inputs")
    lora_targets: str = Field("auto", description="'auto', 'all-linear' or names, by commas")
    adapter_size: int = Field(
        0, ge=0, le=10**9, description="trained numbers (unilora: of all; vera: rank); 0 = its own"
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainConfig:
        if self.optimizer == "adamr" and self.weight_decay:
            raise ValueError(
                f"train.weight-decay = {self.weight_decay} is for train.optimizer = 'adamw'; "
                "AdamR decays the delta instead: train.delta-decay"
            )
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError(
                "set either train.local-steps or train.local-epochs above 0 and the other to 0; "
                f"found local-steps = {self.local_steps}, local-epochs = {self.local_epochs}"
            )
        return self

    @model_validator(mode="after")
    def _rank_is_for_the_adapter(self) -> TrainConfig:
        if self.lora_rank and self.adapter == "none":
            raise ValueError(
                f"train.adapter = 'none' and train.lora-rank = {self.lora_rank} contradict each "
                "other; leave one of them out"
            )
        if self.lora_rank and self.chosen is not None and "rank" not in self.chosen.reads:
            have = ", ".join(repr(name) for name, row in ADAPTERS.items() if "rank" in row.reads)
            raise ValueError(
                f"train.lora-rank = {self.lora_rank} is not for train.adapter = {self.adapter!r}, "
                f"which has no rank; leave it out (0), or set one of {have}"
            )
        return self

    @property
    def chosen(self) -> Adapter | None:
        """The adapter, loaded if it is one's own; None: the whole model is trained."""
        if self.adapter == "none" or (self.adapter == "auto" and not self.lora_rank):
            return None
        return ADAPTERS.choose("lora" if self.adapter == "auto" else self.adapter)

    @property
    def rank(self) -> int:
        """The rank of the adapter; 0: it has none, or there is none."""
        return self.lora_rank or (self.chosen.rank if self.chosen else 0)
