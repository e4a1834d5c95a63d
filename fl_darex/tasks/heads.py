"""Which output of a checkpoint's head is which class of the data.

A head that knows the data's classes keeps them, and labels become its outputs; any other is drawn
anew. Classes are matched by name: as they are written, else without regard to case and outer
spaces (``positive`` is ``POSITIVE``). Where names say nothing, numbers count: labels ``0 .. n - 1``
are the outputs of a head of n classes, and so are classes that the data number themselves where
the head has none but the default names, ``LABEL_0`` and so on.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.tasks.labels import Encoded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SHOWN = 6


@dataclass(frozen=True)
class Head:
    """The outputs that a model is given.

    Attributes:
        names: What each output is called; empty for a regression (one output).
        fresh: Whether a head that the checkpoint has does not fit, and is drawn anew.
    """

    names: tuple[str, ...]
    fresh: bool = False


def choose_head(
    model: str, config: PretrainedConfig, kind: Any, labels: Encoded
) -> tuple[Head, Encoded]:
    """Return the head for labels, and the labels as its outputs, with notes of what was done.

    Args:
        model: ``task.model``, for notes.
        config: The checkpoint's configuration.
        kind: The class that will be loaded. A checkpoint has a head where its configuration names
            this class as the one that was saved.
        labels: The data's.
    """
    if kind.__name__ not in (config.architectures or ()):
        return Head(labels.names), labels
    known: dict[Any, Any] = config.id2label or {}
    own = tuple(str(known[output]) for output in sorted(known))
    if not labels.names:
        return _for_amounts(model, config, own, labels)
    places = match_classes(labels, own)
    if places is None:
        note = f"{_not_those(model, own, labels.names)}: a fresh head is drawn"
        return Head(labels.names, fresh=True), _noted(labels, note)
    names = labels.names if _default(own) and len(own) == len(labels.names) else own
    ids = [[places[label] for label in part] for part in labels.ids]
    return Head(names), _noted(replace(labels, ids=ids, names=names), *_kept(model, own, labels))


def match_classes(labels: Encoded, own: Sequence[str]) -> tuple[int, ...] | None:
    """Return the output for each class of the data, or None where a head does not know them.

    Args:
        labels: The data's; it may have fewer classes than the head.
        own: What the head's outputs are called.
    """
    ways: tuple[Callable[[str], str], ...] = (str, _folded)
    for spelt in ways:
        times = Counter(map(spelt, own))
        outputs = {spelt(name): output for output, name in enumerate(own)}
        wanted = [spelt(name) for name in labels.names]
        # A name that means two outputs, or two classes, means none.
        if len(set(wanted)) == len(wanted) and all(times[name] == 1 for name in wanted):
            return tuple(outputs[name] for name in wanted)
    same = labels.numbered and len(own) == len(labels.names)
    if same and (_default(own) or _numbers(labels.names)):
        return tuple(range(len(own)))
    return None


def tensors_of_head(auto: Any, config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the tensors whose shape goes by the number of classes.

    Args:
        auto: The class whose ``from_config`` makes the model; no memory is taken.
        config: The model's configuration.
    """
    more: Any = copy.deepcopy(config)
    more.num_labels += 1
    with torch.device("meta"):
        one, other = (auto.from_config(made).state_dict() for made in (config, more))
    return tuple(name for name, tensor in one.items() if tensor.shape != other[name].shape)


def _for_amounts(
    model: str, config: PretrainedConfig, own: Sequence[str], labels: Encoded
) -> tuple[Head, Encoded]:
    if len(own) == 1 and config.problem_type in (None, "regression"):
        return Head(()), labels
    note = f"task.model = {model!r} has a head for {len(own)} classes, the data have amounts"
    return Head((), fresh=True), _noted(labels, f"{note}: a fresh head is drawn")


def _not_those(model: str, own: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"task.model = {model!r} has a head for {len(own)} classes ({_listed(own)}), which are not "
        f"the {len(names)} of the data ({_listed(names)})"
    )


def _kept(model: str, own: Sequence[str], labels: Encoded) -> tuple[str, ...]:
    """Return what is not plain from the names."""
    if len(own) > len(labels.names):
        return (
            f"task.model = {model!r}: its head keeps its {len(own)} classes, of which the data "
            f"have {len(labels.names)} ({_listed(labels.names)})",
        )
    if _default(own) or not _numbers(labels.names) or set(own) == set(labels.names):
        return ()
    pairs = [f"{label} = {name}" for label, name in zip(labels.names, own, strict=True)]
    return (
        f"task.model = {model!r}: the labels of the data are taken as the numbers of its head's "
        f"classes: {_listed(pairs)}",
    )


def _noted(labels: Encoded, *notes: str) -> Encoded:
    return replace(labels, notes=(*labels.notes, *notes))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _folded(name: str) -> str:
    return name.strip().casefold()


def _default(names: Sequence[str]) -> bool:
    return all(name == f"LABEL_{position}" for position, name in enumerate(names))


def _numbers(names: Sequence[str]) -> bool:
    return all(name == str(position) for position, name in enumerate(names))
