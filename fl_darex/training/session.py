"""What a process keeps between messages: the task's data and one model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from fl_darex.adapters import Wanted
from fl_darex.config import RunConfig
from fl_darex.config.budget import within_budget
from fl_darex.errors import ConfigError
from fl_darex.seeds import derive
from fl_darex.tasks import Task, load_task
from fl_darex.training.exchange import Exchange, ProductExchange

Examples = list[dict[str, Any]]


class Session:
    """A task, one instance of its model, and the examples of clients as lists.

    Args:
        config: The run's configuration.
        own: Whether the data are one client's own: all of them are then its partition, whatever
            number that has.
        task: The configuration's task, if it is loaded already.

    Attributes:
        task: The task, data loaded.
        model: One model, on the device; its weights are whatever was written last.
        tensors: The model's exchanged tensors, by name.
        trained: Its trained parameters, by name; not the same where LoRA's product is exchanged.
        adapter: What is trained in place of the model's weights; None: they are.
        pretrained: Copies of the exchanged tensors' first values: the anchor of ``train.anchor =
            pretrained``. With LoRA it is the A of the run's seed and B = 0: no change at all.
        dense: Names of exchanged tensors that the base checkpoint lacks.
        device: Where the model is.
        chosen: What was chosen by the model's sizes, a line each; empty: nothing was.
        said_of_one: Whether the log says yet how clients of one example learn.
    """

    def __init__(self, config: RunConfig, own: bool = False, task: Task | None = None) -> None:
        self.config = config
        self._own = own
        self.task: Task = task or load_task(config)
        self.device = _device(config)
        self.adapter = config.train.chosen
        self.model: Any = _with_adapters(self.task, config)
        if config.train.gradient_checkpointing:
            checkpoint_activations(self.model)
        self.model.to(self.device)
        product = config.compress.lora == "product"
        self._exchange = (ProductExchange if product else Exchange)(self.model)
        self.tensors, self.trained = self._exchange.tensors, self._exchange.trained
        self.pretrained = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        name = self.adapter.trained_name if self.adapter else str
        fresh = map(name, self.task.fresh)
        self.dense = tuple(name for name in fresh if name in self.tensors)
        self.said_of_one, self.chosen = False, tuple[str, ...]()
        # Decoding a dataset's rows costs more than a small model's step: keep them as lists.
        self.examples = lru_cache(maxsize=64)(self._examples)
        self.evaluation_examples = lru_cache(maxsize=64)(self._evaluation_examples)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is worth a line each before round 1."""
        train, server = self.config.train, self.config.server
        found = [*self.task.notes, *self.chosen]
        if self.device.type == "cpu" and _is_emulated(train.precision):
            found.append(
                f"train.precision = {train.precision!r}: this machine's CPU does not compute in "
                "it, and takes many times as long as with 'fp32'"
            )
        if train.dense_lr != "same" and not set(self.whole) & set(self.trained):
            found.append(
                f"train.dense-lr = {train.dense_lr:g} does nothing: no trained tensor of this "
                "model is sent whole"
            )
        if server.average != "none":
            kind = "moving average" if server.average == "ema" else "mean"
            found.append(
                f"what is evaluated and saved is the {kind} of the models from round "
                f"{server.average_from} on, not the last one (server.average = {server.average!r})"
            )
        return tuple(found)

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """Return the names of the exchanged tensors that are sent whole, as the settings say."""
        asked = self.config.uplink(self.dense).fitted(self.tensors)
        return tuple(spec.name for spec in asked.layout(self.tensors).dense)

    @cached_property
    def base(self) -> dict[str, NDArray[Any]]:
        """Return `pretrained` as NumPy arrays: what a client holds before it is sent anything."""
        return {name: tensor.cpu().numpy() for name, tensor in self.pretrained.items()}

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes that the data have, position = label; or nothing."""
        config: Any = getattr(self.model, "config", None)
        if getattr(config, "problem_type", None) != "single_label_classification":
            return ()
        return tuple(str(config.id2label[index]) for index in sorted(config.id2label))

    @cached_property
    def validation_examples(self) -> Examples:
        """Return the examples by which the server chooses q."""
        return list(self.task.validation or ())

    def read(self) -> dict[str, NDArray[Any]]:
        """Return copies of the exchanged tensors as they are now."""
        return self._exchange.read()

    def view(self) -> dict[str, NDArray[Any]]:
        """Return the exchanged tensors for whoever copies them at once; see `Exchange.view`."""
        return self._exchange.view()

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Bring the model to a round's start.

        Raises:
            ValueError: If the arrays are not this model's.
        """
        self._exchange.write(arrays)

    def save_model(self, folder: Path) -> None:
        """Write the model, as it is now, so that ``from_pretrained`` loads it.

        One without ``save_pretrained`` is written as ``model.safetensors``, its state. With an
        adapter it is the merged model; the adapter itself, if it is what is exchanged, lies in
        ``adapter/``, which peft's ``PeftModel.from_pretrained`` loads onto the base.
        """
        model: Any = self.adapter.merged(self.model) if self.adapter else self.model
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_model(model, str(folder / "model.safetensors"))
        if self.adapter and self.config.compress.lora == "factors":
            self.adapter.save(self.model, folder / "adapter")
        if self.task.processor is not None:
            self.task.processor.save_pretrained(folder)

    def calibration(self, partition: int) -> Examples:
        """Return the examples of a client by which it weighs changes and searches for q."""
        return self._shares(partition)[1]

    def _examples(self, partition: int) -> Examples:
        return self._shares(partition)[0]

    def _shares(self, partition: int) -> tuple[Examples, Examples]:
        """Return what a client trains on and what it calibrates with.

        These are the same examples, unless the search needs some that were not trained on.
        """
        examples, config = list(self.task.partition(0 if self._own else partition)), self.config
        count = config.compress.calibration_examples
        held = config.compress.holds_out
        if held and count >= len(examples):
            raise ConfigError(
                f"compress.calibration-examples = {count} leaves client {partition} nothing of "
                f"its {len(examples)} examples to train on; set a smaller number"
            )
        seed = derive(config.federation.seed, "calibration", partition)
        order = np.random.default_rng(seed).permutation(len(examples)).tolist()
        chosen = [examples[index] for index in order[:count]]
        return ([examples[index] for index in sorted(order[count:])] if held else examples), chosen

    def _evaluation_examples(self, partition: int | None = None) -> Examples:
        if partition is None:
            return list(self.task.evaluation)
        return list(self.task.evaluation_partition(0 if self._own else partition))


def session(config: RunConfig, own: bool = False) -> Session:
    """Return this process's session for a configuration; the last one is kept.

    Args:
        config: The run's configuration.
        own: See `Session`.
    """
    if (config, own) not in _KEPT:
        _KEPT.clear()
        _KEPT[config, own] = Session(config, own, task_of(config))
    return _KEPT[config, own]


def settled(config: RunConfig) -> RunConfig:
    """Return a configuration in which nothing is left to choose by the sizes of the model.

    This process's session becomes that of the returned configuration.

    Raises:
        ConfigError: If ``compress.budget`` is too small for the model.
    """
    if not config.compress.budget:
        return config
    held = session(config)
    held.config, held.chosen = within_budget(config, held.tensors, held.dense)
    _KEPT.clear()
    _KEPT[held.config, False] = held
    return held.config


@lru_cache(maxsize=1)
def task_of(config: RunConfig) -> Task:
    """Return the task of this process's session, its data loaded, before there is a model."""
    return load_task(config)


_KEPT: dict[tuple[RunConfig, bool], Session] = {}  # one at most: a model may fill the memory


def checkpoint_activations(model: torch.nn.Module) -> None:
    """Make a model compute its layers' activations again on the way back, not keep them.

    Results stay the same, a step takes about a third longer. Checkpoints are non-reentrant, so
    frozen inputs and adapters work too.

    Raises:
        ConfigError: If the model cannot do it.
    """
    # The name changed within transformers 5; settings are the first argument of both.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    try:
        if enable is None:
            raise ValueError(f"{type(model).__name__} has no {names[1]}")
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.gradient-checkpointing = true, but {error}; set it to false"
        ) from None


def _with_adapters(task: Task, config: RunConfig) -> Any:
    train, model = config.train, task.load_model()
    if train.chosen is None:
        return model
    wanted = Wanted(
        rank=train.rank,
        alpha=train.lora_alpha,
        dropout=train.lora_dropout,
        targets=train.lora_targets,
        size=train.adapter_size,
        seed=derive(config.federation.seed, "lora"),
    )
    return train.chosen.put_into(model, wanted, task.fresh)


def _is_emulated(precision: str) -> bool:
    """Return whether torch says that this CPU has no instructions for a type of numbers."""
    has = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", None)
    return has is not None and not has()


def _device(config: RunConfig) -> torch.device:
    wanted = config.resources.uses_gpus and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")
