"""The sections in which something is chosen by name, whose options are keys of the same section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from fl_darex.compression.choices import MaskChoice, QChoice
from fl_darex.compression.downlink import POLICIES
from fl_darex.compression.method import Method
from fl_darex.compression.methods import METHODS
from fl_darex.compression.uplink import Uplink
from fl_darex.config.names import names_a_row
from fl_darex.config.sections import Budget, Fraction, Rate, Section, Size
from fl_darex.errors import nearest
from fl_darex.flower.optimizers import OPTIMIZERS, Optimizer
from fl_darex.masks import keep_threshold
from fl_darex.options import Option, Scalar
from fl_darex.rescaling.rules import LABELLED
from fl_darex.wire.codings import CODINGS

Head = TypeVar("Head", bound=BaseModel)


def with_options(head: type[Head], rows: Mapping[str, Any]) -> type[Head]:
    """Return a section with a key for each option of a table's rows, after the head's own keys."""
    options = {name: one for row in rows.values() for name, one in row.options.items()}
    fields: dict[str, Any] = {
        name: (
            Literal[option.choices] if option.choices else type(option.default),
            Field(
                option.default,
                ge=option.low,
                gt=option.above,
                le=option.high,
                lt=option.below,
                description=option.help,
            ),
        )
        for name, option in options.items()
    }
    return create_model(head.__name__, __base__=head, **fields)


def fill_in(section: BaseModel, prefix: str, own: Mapping[str, Option], owner: str) -> None:
    """Check the keys of a section that are no fields of it: options of something of one's own.

    Those that are left out are put in with their defaults, so that a resolved configuration is
    complete.

    Raises:
        ValueError: If a key is no such option, or its value is not allowed.
    """
    extra = section.__pydantic_extra__ if section.__pydantic_extra__ is not None else {}
    keys = {name.replace("_", "-"): name for name in own if name not in type(section).model_fields}
    for key in extra:
        if key not in keys:
            known = ", ".join(keys) or "none"
            raise ValueError(
                f"unknown key '{prefix}.{key}'; own options of {owner}: {known}{nearest(key, keys)}"
            )
    for key, name in keys.items():
        extra[key] = own[name].checked(f"{prefix}.{key}", extra.get(key, own[name].default))


def options_of(section: BaseModel, own: Mapping[str, Option]) -> dict[str, Scalar]:
    """Return the values that a section has for options, by the options' names."""
    extra = section.__pydantic_extra__ or {}
    fields = type(section).model_fields
    return {
        name: getattr(section, name) if name in fields else extra[name.replace("_", "-")]
        for name in own
    }


class _CompressHead(Section):
    """What a client sends: the method, and q."""

    model_config = ConfigDict(extra="allow")  # options of a method of one's own: `fill_in`

    method: Annotated[str, AfterValidator(names_a_row("compress.method", METHODS))] = "dare"
    p: float = Field(0.99, ge=0.0, lt=1.0, description="fraction of the delta that is dropped")
    budget: Budget = Field(
        "", description="bytes of a reply, such as '50 kB'; chooses p and values; empty: as said"
    )
    q: QChoice | Rate = Field(
        "dare", description="survivors are divided by q; the names search for it"
    )
    calibration_examples: int = Field(
        64, ge=1, description="of each client, for WANDA and searches; q-v does not train on them"
    )


class _ServerHead(Section):
    """What the server does with the averaged update: the optimizer."""

    model_config = ConfigDict(extra="allow")  # options of an optimizer of one's own: `fill_in`

    strategy: Annotated[str, AfterValidator(names_a_row("server.strategy", OPTIMIZERS))] = "fedavg"


if TYPE_CHECKING:

    class _CompressOptions(_CompressHead):
        """Every option of a method is a key."""

    class _ServerOptions(_ServerHead):
        """Every option of an optimizer is a key."""

else:
    _CompressOptions = with_options(_CompressHead, METHODS.first)
    _ServerOptions = with_options(_ServerHead, OPTIMIZERS.first)


class CompressConfig(_CompressOptions):
    """What a client sends."""

    values: Annotated[str, AfterValidator(names_a_row("compress.values", CODINGS))] = "fp16"
    scale: Literal["unbiased", "least-squares"] = Field(
        "unbiased", description="of eden1 to eden4: mean right, or nearer and shorter"
    )
    mask: MaskChoice = Field(
        "client", description="one mask each, shared, sharing no entry, or as rho suggests"
    )
    count: Literal["random", "exact"] = Field("random", description="survivors of each tensor")
    rotate: bool = Field(True, description="a new mask each round; false: one for the whole run")
    dense_below: Literal["auto"] | Size = Field(
        "auto", description="tensors of at most so many entries go whole; auto: while they are few"
    )
    downlink: Annotated[str, AfterValidator(names_a_row("compress.downlink", POLICIES))] = Field(
        "update", description="the model, what changed of it, or the largest entries of that"
    )
    downlink_p: Literal["same"] | Fraction = Field(
        "same", description="fraction of the server's step that 'server' keeps back"
    )
    downlink_values: Annotated[
        str, AfterValidator(names_a_row("compress.downlink-values", CODINGS, "same"))
    ] = Field("same", description="how the server's packets write numbers")
    lora: Literal["factors", "product"] = Field(
        "factors", description="of LoRA's adapters: prune A and B each, or the change that they are"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> CompressConfig:
        for key, p in (("p", self.p), ("downlink-p", self.server_p)):
            try:
                keep_threshold(p)
            except ValueError as error:
                raise ValueError(f"compress.{key} = {p!r} is not allowed; {error}") from None
        fill_in(self, "compress", self.chosen.options, f"method {self.chosen.name!r}")
        self._check_budget()
        try:
            self.uplink(seed=0)
        except ValueError as error:  # begins with a key
            raise ValueError(f"compress.{error}") from None
        return self

    def _check_budget(self) -> None:
        if not self.budget:
            return
        key = f"compress.budget = {self.budget!r}"
        if self.chosen.name != "dare":
            raise ValueError(
                f"{key} chooses p by the noise of random dropping, and compress.method = "
                f"{self.chosen.name!r} does not drop so; set compress.method = 'dare', or "
                "compress.p in place of the budget"
            )
        if not isinstance(self.q, str):
            raise ValueError(
                f"{key} chooses p, which compress.q = {self.q!r} belongs to; leave compress.q = "
                "'dare', or set compress.p in place of the budget"
            )

    @property
    def chosen(self) -> Method:
        """The method, loaded if it is one's own."""
        return METHODS.choose(self.method)

    def uplink(self, seed: int, dense: tuple[str, ...] = (), mask_first: bool = False) -> Uplink:
        """Return what is asked of clients; `RunConfig.uplink` knows all of it.

        Args:
            seed: The run's seed.
            dense: Names of tensors whose whole delta is sent.
            mask_first: Whether clients train only what their mask keeps.

        Raises:
            ValueError: If two settings do not go together.
        """
        return Uplink.of(
            self.chosen,
            self.p,
            q=self.q,
            # What a budget chooses comes later; one bit suits all settings that some coding does.
            values="eden1" if self.budget else CODINGS.choose(self.values).name,
            scale=self.scale,
            mask=self.mask,
            count=self.count,
            rotate=self.rotate,
            mask_first=mask_first,
            seed=seed,
            dense=dense,
            dense_below=self.dense_below,
            options=options_of(self, self.chosen.options),
        )

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
        same = self.downlink_values == "same"
        return CODINGS.choose(self.values if same else self.downlink_values).name


class ServerConfig(_ServerOptions):
    """What the server does with the averaged update."""

    average: Literal["none", "uniform", "ema"] = Field(
        "none",
        description="of the models after each round: evaluated and saved, trained is the last",
    )
    average_from: int = Field(
        1, ge=1, description="the round whose model is the first in the average"
    )
    average_decay: float = Field(
        0.9, ge=0.0, lt=1.0, description="ema: how much less the model before counts"
    )

    validation_examples: int = Field(
        256, ge=1, description="of q searched by the server: taken out of train for it"
    )

    @model_validator(mode="after")
    def _own_options(self) -> ServerConfig:
        fill_in(self, "server", self.chosen.options, f"strategy {self.chosen.name!r}")
        return self

    @property
    def chosen(self) -> Optimizer:
        """The optimizer, loaded if it is one's own."""
        return OPTIMIZERS.choose(self.strategy)

    @property
    def options(self) -> dict[str, Scalar]:
        """The optimizer's options by name."""
        return options_of(self, self.chosen.options)
