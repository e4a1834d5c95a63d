"""The sections of a configuration: every key, its default, its range, and what goes together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl_darex.masks import keep_threshold
from fl_darex.rescaling.rules import LABELLED

Rate = Annotated[float, Field(ge=1e-9, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


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

    name: Literal["digits", "text-classification", "image-classification", "causal-lm"] = "digits"
    model: str = Field("", description="hub name or folder; digits: empty = the packaged model")
    dataset: str = Field("", description="hub name or folder; digits: must be empty")
    subset: str = Field("", description="configuration of a hub dataset, e.g. 'sst2'")
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
    rounds: int = Field(10, ge=1, le=1_000_000)
    partition: Literal["iid", "dirichlet", "pathological", "natural"] = "iid"
    alpha: float = Field(0.3, gt=0.0, le=1e6, description="Dirichlet: smaller = more skew")
    classes_per_client: int = Field(2, ge=1, description="pathological partition")
    partition_column: str = Field("", description="natural partition: the column with the owner")
    seed: int = Field(0, ge=0, lt=2**63)
    evaluate: Literal["server", "clients", "none"] = "server"
    evaluate_every: int = Field(1, ge=1, description="rounds; the last one always counts")
    timeout: float = Field(3600.0, gt=0.0, description="seconds to wait for a round's replies")

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
    lr: float = Field(1e-3, gt=0.0, le=10.0)
    local_steps: int = Field(10, ge=0, description="optimizer steps a round; 0 = use epochs")
    local_epochs: int = Field(0, ge=0, description="passes a round, where local-steps is 0")
    batch_size: int = Field(32, ge=1, le=65536)
    eval_batch_size: int = Field(256, ge=1, le=65536)
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
    lora_rank: int = Field(0, ge=0, le=65536, description="train adapters of that rank; 0 = off")
    lora_alpha: float = Field(16.0, gt=0.0, le=1e6, description="adapters: scaled by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="of an adapter's inputs")
    lora_targets: str = Field("auto", description="'auto', 'all-linear' or names, by commas")

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


class CompressConfig(Section):
    """What a client sends."""

    method: Literal["dare", "structured", "magnitude", "wanda", "dense"] = "dare"
    p: float = Field(0.99, ge=0.0, lt=1.0, description="fraction of the delta that is dropped")
    q: Literal["dare", "q-v", "q-e", "layer-q-v", "layer-q-e", "server-validation"] | Rate = Field(
        "dare", description="survivors are divided by q; the names search for it"
    )
    calibration_examples: int = Field(
        64, ge=1, description="of each client, for WANDA and searches; q-v does not train on them"
    )
    scope: Literal["layer", "row", "global"] = Field(
        "layer", description="magnitude, wanda: among which entries the largest are kept"
    )
    columns: Rate = Field(0.05, description="structured: fraction of input columns that is kept")
    values: Literal["fp32", "fp16", "bf16", "int8", "int4", "sign"] = "fp16"
    mask: Literal["client", "round"] = Field("client", description="one mask each, or shared")
    count: Literal["random", "exact"] = Field("random", description="survivors of each tensor")
    downlink: Literal["dense", "update", "server"] = Field(
        "update", description="the model, what changed of it, or the largest entries of that"
    )
    downlink_p: Literal["same"] | Fraction = Field(
        "same", description="fraction of the server's step that 'server' keeps back"
    )
    downlink_values: Literal["same", "fp32", "fp16", "bf16", "int8", "int4", "sign"] = Field(
        "same", description="how the server's packets write numbers"
    )
    lora: Literal["factors", "product"] = Field(
        "factors", description="of LoRA's adapters: prune A and B each, or the change that they are"
    )

    @model_validator(mode="after")
    def _something_survives(self) -> CompressConfig:
        for key, p in (("p", self.p), ("downlink-p", self.server_p)):
            try:
                keep_threshold(p)
            except ValueError as error:
                raise ValueError(f"compress.{key} = {p!r} is not allowed; {error}") from None
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> CompressConfig:
        by_value = self.method in ("magnitude", "wanda")
        if by_value and self.mask == "round":
            raise ValueError(
                f"compress.mask = 'round' is for masks that are drawn; compress.method = "
                f"{self.method!r} chooses by value: set compress.mask = 'client'"
            )
        if self.method == "wanda" and self.scope == "global":
            raise ValueError(
                "compress.scope = 'global' needs activations of every tensor, which only linear "
                "layers have; with compress.method = 'wanda' set 'layer' or 'row'"
            )
        if self.method == "structured" and self.columns < 1 - self.p - 1e-9:
            raise ValueError(
                f"compress.columns = {self.columns} keeps fewer entries than compress.p = "
                f"{self.p} does; allowed: {1 - self.p:g} to 1"
            )
        if self.method == "dense" and isinstance(self.q, str) and self.q != "dare":
            raise ValueError(
                f"compress.q = {self.q!r} divides survivors; compress.method = 'dense' has none"
            )
        return self

    @property
    def holds_out(self) -> bool:
        """Whether clients keep their calibration examples out of training."""
        return self.q in LABELLED

    @property
    def server_p(self) -> float:
        """Fraction of its step that the server keeps back."""
        return self.p if self.downlink_p == "same" else self.downlink_p

    @property
    def server_values(self) -> str:
        """How the server's packets write numbers."""
        return self.values if self.downlink_values == "same" else self.downlink_values


class ServerConfig(Section):
    """What the server does with the averaged update."""

    strategy: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    lr: float = Field(1.0, gt=0.0, le=1e3, description="FedAvgM's and FedAdam's step size")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="FedAvgM")
    beta_1: float = Field(0.9, ge=0.0, lt=1.0, description="FedAdam")
    beta_2: float = Field(0.99, ge=0.0, lt=1.0, description="FedAdam")
    tau: float = Field(1e-3, gt=0.0, description="FedAdam")
    validation_examples: int = Field(
        256, ge=1, description="q = server-validation: taken out of train for choosing q"
    )


class ResourcesConfig(Section):
    """What a simulated client may use; Ray places clients by these numbers."""

    num_cpus: float = Field(1.0, gt=0.0, le=4096.0, description="cores per client")
    num_gpus: float = Field(0.0, ge=0.0, le=64.0, description="GPUs per client, may be a fraction")
    actors: int = Field(0, ge=0, le=65536, description="worker processes; 0 = as many as fit")
    ray_address: str = Field("", description="an existing Ray cluster; empty = start one")
