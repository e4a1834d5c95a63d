"""The configuration of a run: frozen, validated, flat kebab-case keys in sections.

The same TOML file serves ``fl-darex run`` and ``flwr run . --run-config``: scalars only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from fl_darex.adapters import ADAPTERS
from fl_darex.compression.uplink import Uplink
from fl_darex.config.chosen import CompressConfig, ServerConfig
from fl_darex.config.errors import explain
from fl_darex.config.resources import ResourcesConfig
from fl_darex.config.sections import (
    FederationConfig,
    Section,
    TaskConfig,
    TrainConfig,
)
from fl_darex.config.text import Scalar, flatten, parse_override, toml_scalar
from fl_darex.errors import ConfigError, nearest
from fl_darex.rescaling.rules import PER_LAYER, RULES
from fl_darex.wire.codings import nature_of

_OWN = ("compress.method", "server.strategy")
"""Keys that can name something of one's own with options, which are keys of the same section."""

OWN_NAMES = (
    *_OWN,
    *("compress.values", "compress.downlink", "compress.downlink-values", "task.name"),
    "train.adapter",
)
"""All keys that can name something of one's own, as ``"package.module:name"``."""


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
        adapter = self.train.chosen
        if self.compress.lora == "product" and adapter is None:
            raise ValueError(
                "compress.lora = 'product' is for adapters, and train.lora-rank = 0 means none; "
                "set train.lora-rank to 1 or more, or compress.lora = 'factors'"
            )
        if self.compress.lora == "product" and adapter is not None and not adapter.product:
            rows = ", ".join(repr(name) for name, row in ADAPTERS.items() if row.product)
            raise ValueError(
                f"compress.lora = 'product' is for train.adapter = {rows}; what "
                f"{self.train.adapter!r} trains is smaller than the weights' change: set "
                "compress.lora = 'factors'"
            )
        if self.compress.lora == "product" and (
            self.compress.q in RULES or self.compress.method == "wanda"
        ):
            raise ValueError(
                "compress.lora = 'product' sends the change of weights that the client's own model "
                "has in its adapters, so compress.method = 'wanda' and the searches for "
                "compress.q on the client cannot look at it; set compress.lora = 'factors', or "
                "another method and q"
            )
        if self.compress.lora == "product" and self.train.anchor == "pretrained":
            raise ValueError(
                "train.anchor = 'pretrained' does not go with compress.lora = 'product': adapters "
                "start anew each round, so all they know is the round's change; set 'round'"
            )
        return self

    @model_validator(mode="after")
    def _mask_first(self) -> RunConfig:
        if not self.train.masked:
            return self
        method, q = self.compress.chosen, self.compress.q
        if method.packs and not method.seeded:
            raise ValueError(
                "train.masked = true trains what a mask keeps that is known before training, and "
                f"compress.method = {method.name!r} chooses by value afterwards; set "
                "compress.method = 'dare' or 'structured', or train.masked = false"
            )
        if not self.mask_first:  # nothing to train by
            return self
        if q not in ("dare", 1):
            raise ValueError(
                f"compress.q = {q!r} does not go with train.masked = true: nothing is dropped, so "
                "nothing is made up for, and q is 1; leave compress.q = 'dare'"
            )
        if self.compress.lora == "product":
            raise ValueError(
                "train.masked = true does not go with compress.lora = 'product': the mask lies on "
                "the product of the adapters, which are what is trained; set compress.lora = "
                "'factors', or train.masked = false"
            )
        try:
            self.uplink()
        except ValueError as error:  # begins with a key
            raise ValueError(f"compress.{error}; or set train.masked = false") from None
        return self

    @model_validator(mode="after")
    def _classes_have_clients(self) -> RunConfig:
        clients = self.federation.clients
        beyond = [p for own, _ in self.resources.by_class for p in own if p >= clients]
        if beyond:
            raise ValueError(
                f"resources.classes = {self.resources.classes!r} names client {min(beyond)}, and "
                f"federation.clients = {clients}; allowed: 0 to {clients - 1}"
            )
        return self

    @model_validator(mode="after")
    def _average_is_measured(self) -> RunConfig:
        server, federation = self.server, self.federation
        if server.average == "none":
            return self
        if federation.evaluate == "clients":
            raise ValueError(
                f"server.average = {server.average!r} is evaluated and saved on the server, and "
                "federation.evaluate = 'clients' evaluates the last model, which clients have; set "
                "federation.evaluate = 'server' or 'none', or server.average = 'none'"
            )
        if server.average_from > federation.rounds:
            raise ValueError(
                f"server.average-from = {server.average_from} is after the last round; allowed: 1 "
                f"to federation.rounds = {federation.rounds}"
            )
        return self

    @model_validator(mode="after")
    def _adapter_and_compression(self) -> RunConfig:
        adapter, name = self.train.chosen, self.train.adapter
        if adapter is not None and not adapter.matrices and self.compress.q in PER_LAYER:
            raise ValueError(
                f"compress.q = {self.compress.q!r} looks for a q of each linear layer by its "
                f"inputs, and what train.adapter = {name!r} trains are no weights of such layers; "
                f"set {str(self.compress.q).removeprefix('layer-')!r} or 'dare'"
            )
        for key, values in (
            ("values", self.compress.values),
            ("downlink-values", self.compress.server_values),
        ):
            if adapter is not None and adapter.needs_zeros and not nature_of(values).zeros:
                raise ValueError(
                    f"compress.{key} = {values!r} writes no zero as zero, and train.adapter = "
                    f"{name!r} needs one: what rests in a round must not change; set 'int4', or "
                    "another adapter such as 'ffa-lora'"
                )
        return self

    @property
    def mask_first(self) -> bool:
        """Whether clients train only what their mask keeps; without a mask they train all."""
        compress = self.compress
        return self.train.masked and compress.chosen.packs and compress.p > 0

    def uplink(self, dense: tuple[str, ...] = ()) -> Uplink:
        """Return what is asked of clients.

        Args:
            dense: Names of tensors whose whole delta is sent.
        """
        return self.compress.uplink(self.federation.seed, dense, self.mask_first)

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
    return make_config(read_file(path) | read_overrides(overrides))


def read_file(path: Path | str) -> dict[str, Any]:
    """Return what a TOML file sets, by flat keys, unchecked.

    Raises:
        ConfigError: If it cannot be read, is no TOML, or sets a key twice.
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
    return flatten(tree)


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Return what ``key=value`` texts set, by flat keys, unchecked; the last of a key counts.

    Raises:
        ConfigError: If one is not of that form.
    """
    known = RunConfig().flat()
    return dict(parse_override(item, known) for item in overrides)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from flat keys, ``{"compress.p": 0.99}``.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed; the message names the key,
            the value, what is allowed and the nearest known key.
    """
    keys = known_keys()
    # What is an option of something of one's own is known when that is loaded, in its section.
    own = tuple(f"{key.partition('.')[0]}." for key in _OWN if ":" in str(values.get(key, "")))
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key in RunConfig.model_fields and value == {}:
            continue  # a section without keys
        # Fields answer to their Python names, too, which are no keys.
        if key not in keys and ("_" in key or not key.startswith(own)):
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
