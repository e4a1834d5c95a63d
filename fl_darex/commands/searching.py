"""What ``fl-darex prune`` learns from examples: q, and which inputs WANDA weighs changes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fl_darex.commands.beforehand import check_folders
from fl_darex.commands.loading import load_session
from fl_darex.commands.messages import say
from fl_darex.commands.settings import quiet
from fl_darex.config import RunConfig, make_config, read_overrides
from fl_darex.config.paths import resolved
from fl_darex.errors import ConfigError, nearest
from fl_darex.observers.phases import Phases
from fl_darex.rescaling.rules import PER_TENSOR, RULES

if TYPE_CHECKING:
    from fl_darex.deltas import Checkpoint, Pruning
    from fl_darex.deltas.header import Row
    from fl_darex.training.session import Session


def learned(
    how: Pruning,
    rule: str,
    models: tuple[Checkpoint, Checkpoint],
    data: str,
    settings: Sequence[str],
    console: Console,
) -> Pruning:
    """Return how to prune, with what examples say of it.

    The fine-tuned model is loaded whole, in float32, and all of its survivors with it.

    Args:
        how: The settings; of WANDA without norms.
        rule: A row of `fl_darex.rescaling.rules.RULES` that chooses q; empty: q is told.
        models: Before and after fine-tuning.
        data: As ``task.dataset``. Its training examples are used, never those to measure on.
        settings: More of them, each as ``SECTION.KEY=VALUE``.
        console: Where it is said what goes on.

    Raises:
        ConfigError: If model or data cannot be used, or do not fit each other.
    """
    config = _config(how, rule, models[1], data, settings)
    quiet()
    check_folders(config.task)
    phases = Phases(console)
    try:
        session = load_session(config, phases)
        for note in session.notes:
            say(console, note, "note:", "yellow")
        if how.method == "wanda":
            from fl_darex.training.calibration import input_norms

            phases.begin("looking at the inputs of layers")
            how = replace(how, norms=input_norms(session, 0))
        if rule:
            phases.begin("searching for q")
            how = replace(how, q=_searched(how, rule, models, session))
        phases.end()
    finally:
        phases.stop()
    if rule:
        found = [how.q] if isinstance(how.q, float) else list(dict(how.q).values())  # type: ignore[arg-type]
        span = f"{min(found):.4g}" + (f" to {max(found):.4g}" if len(found) > 1 else "")
        say(console, f"q by {rule}: {span}; 1-p is {1 - how.p:.4g}")
    return how


def needs_examples(
    rule: str, method: str, q: str, data: str, settings: Sequence[str], adapter: bool
) -> bool:
    """Return whether examples are looked at; refuse options that contradict each other.

    Raises:
        ConfigError: With what is allowed.
    """
    wanted = rule or (method == "wanda" and f"method = {method!r}") or ""
    if rule and rule not in RULES:
        raise ConfigError(f"search = {rule!r}; allowed: {', '.join(RULES)}{nearest(rule, RULES)}")
    if rule and q != "dare":
        raise ConfigError(f"q = {q!r} and search = {rule!r} are two answers; leave one out")
    if wanted and not data:
        raise ConfigError(f"{wanted} looks at examples; name them with --data")
    if not wanted and (data or settings):
        odd = f"data = {data!r}" if data else f"{settings[0]!r}"
        raise ConfigError(f"{odd} does nothing without --search or --method wanda; leave it out")
    if wanted and adapter:
        raise ConfigError(
            f"{wanted} loads FINETUNED, which is an adapter; merge it with peft's "
            "merge_and_unload, save the model and leave --adapter out"
        )
    return bool(wanted)


def _config(
    how: Pruning, rule: str, tuned: Checkpoint, data: str, settings: Sequence[str]
) -> RunConfig:
    ours: dict[str, Any] = {
        "task.model": str(tuned.place),
        "task.dataset": data,
        "compress.p": how.p,
        "compress.q": rule or "dare",
        "compress.values": how.values,
        "federation.seed": how.seed,
        "federation.clients": 1,
        "federation.clients-per-round": 1,
    }
    told = read_overrides(settings)
    if clash := sorted(set(told) & set(ours)):
        raise ConfigError(f"{clash[0]} cannot be set here: it follows from the other options")
    return resolved(make_config({"task.name": "text-classification"} | ours | told))


def _searched(
    how: Pruning, rule: str, models: tuple[Checkpoint, Checkpoint], session: Session
) -> float | Mapping[str, float]:
    from fl_darex.deltas.matching import matched
    from fl_darex.deltas.packing import Source
    from fl_darex.training.calibration import choose_q

    before, after = models
    rows, _ = matched(after.tensors, before.tensors, how)
    pruned = [replace(row, packet=0) for row in rows if row.role == "pruned"]
    base = _bases(pruned, before, session)
    (survivors,) = Source(after.tensors, before.tensors, how).survivors(pruned)
    q = choose_q(session, 0, survivors, base, rule, 1)
    if rule not in PER_TENSOR:
        return float(np.max(q))
    numbers = np.broadcast_to(np.asarray(q, np.float64), len(pruned)).tolist()
    return {row.name: number for row, number in zip(pruned, numbers, strict=True)}


def _bases(rows: Sequence[Row], before: Checkpoint, session: Session) -> dict[str, NDArray[Any]]:
    """Return the base's values of a model's tensors; those that are not pruned are the model's."""
    found = {name: tensor.detach().cpu().numpy() for name, tensor in session.tensors.items()}
    for row in rows:
        if row.name not in found or found[row.name].shape != row.shape:
            raise ConfigError(
                f"{row.name!r} is not in the model that transformers makes of FINETUNED, so its q "
                "cannot be searched; give --q a number, or keep it whole with --dense"
            )
        found[row.name] = np.asarray(before.tensors[row.base or row.name].load(), np.float32)
    return found
