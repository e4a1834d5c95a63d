"""The configuration of a run: frozen, validated, flat kebab-case keys in sections.

The same TOML file serves ``fl-darex run`` and ``flwr run . --run-config``: scalars only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fl_darex.config_errors import explain
from fl_darex.config_text import Scalar, flatten, parse_override, toml_scalar
from fl_darex.errors import ConfigError, nearest
from fl_darex.masks import keep_threshold

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

    name: Literal["digits", "text-classification"] = "digits"
    model: str = Field("", description="hub name or folder; digits: empty = the packaged model")
    dataset: str = Field("", description="hub name or folder; digits: must be empty")
    subset: str = Field("", description="configuration of a hub dataset, e.g. 'sst2'")
    metric: Literal["auto", "accuracy", "matthews", "accuracy-f1", "pearson-spearman"] = "auto"
    max_length: int = Field(128, ge=4, le=8192, description="tokens per example at most")
    holdout: int = Field(
        0, ge=0, description="examples taken out of train for evaluation; 0 = the dataset's own"
    )
    train_examples: int = Field(0, ge=0, description="use that many training examples; 0 = all")
    eval_examples: int = Field(0, ge=0, description="use that many evaluation examples; 0 = all")


class FederationConfig(Section):
    """Who takes part, on which part of the data, and for how long."""

    clients: int = Field(10, ge=1, le=1_000_000)
    clients_per_round: int = Field(0, ge=0, description="0 = all clients")
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

    method: Literal["dare", "dense"] = "dare"
    p: float = Field(0.99, ge=0.0, lt=1.0, description="fraction of the delta that is dropped")
    q: Literal["dare"] | Rate = Field("dare", description="survivors are divided by q")
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


class ResourcesConfig(Section):
    """What a simulated client may use; Ray places clients by these numbers."""

    num_cpus: float = Field(1.0, gt=0.0, le=4096.0, description="cores per client")
    num_gpus: float = Field(0.0, ge=0.0, le=64.0, description="GPUs per client, may be a fraction")
    actors: int = Field(0, ge=0, le=65536, description="worker processes; 0 = as many as fit")
    ray_address: str = Field("", description="an existing Ray cluster; empty = start one")


class RunConfig(Section):
    """All settings of a run. Equal configs give equal results."""

    task: TaskConfig = TaskConfig()
    federation: FederationConfig = FederationConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig = CompressConfig()
    server: ServerConfig = ServerConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _product_of_adapters(self) -> RunConfig:
        if self.compress.lora == "product" and not self.train.lora_rank:
            raise ValueError(
                "compress.lora = 'product' is for adapters, and train.lora-rank = 0 means none; "
                "set train.lora-rank to 1 or more, or compress.lora = 'factors'"
            )
        if self.compress.lora == "product" and self.train.anchor == "pretrained":
            raise ValueError(
                "train.anchor = 'pretrained' does not go with compress.lora = 'product': adapters "
                "start anew each round, so all they know is the round's change; set 'round'"
            )
        return self

    def flat(self) -> dict[str, Scalar]:
        """Return ``{"section.key": value}`` for every setting, defaults included."""
        nested = self.model_dump(by_alias=True)
        return {f"{s}.{k}": v for s, values in nested.items() for k, v in values.items()}

    def to_toml(self) -> str:
        """Return the configuration as TOML text that ``load_config`` reads back."""
        blocks = []
        for section, values in self.model_dump(by_alias=True).items():
            lines = [f"{key} = {toml_scalar(value)}" for key, value in values.items()]
            blocks.append("\n".join([f"[{section}]", *lines]))
        return "\n\n".join(blocks) + "\n"


def known_keys() -> list[str]:
    """Return every ``section.key`` in declaration order."""
    return list(RunConfig().flat())


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a TOML file, apply ``key=value`` overrides and validate the result.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value is not allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{str(path)!r} is not UTF-8 text, so not a TOML file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {reason}") from None
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not valid TOML: {error}") from None
    values = flatten(tree)
    for item in overrides:
        key, value = parse_override(item, RunConfig().flat())
        values[key] = value
    return make_config(values)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from flat keys, ``{"compress.p": 0.99}``.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed; the message names the key,
            the value, what is allowed and the nearest known key.
    """
    keys = known_keys()
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key in RunConfig.model_fields and value == {}:
            continue  # a section without keys
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}{_nearest_key(key, keys)}")
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig)) from None


def _nearest_key(key: str, keys: list[str]) -> str:
    # Somebody who leaves out the section ("lr") means the key that ends so.
    ends = [known for known in keys if known.partition(".")[2] == key]
    return f"; did you mean {ends[0]!r}?" if ends else nearest(key, keys)
