"""Every key that may do nothing in a run, and what it is for.

A key that is not here always counts, and a test names those; a new key belongs in one of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fl_darex.adapters import ADAPTERS
from fl_darex.compression.downlink import POLICIES
from fl_darex.compression.methods import METHODS
from fl_darex.config.run import RunConfig
from fl_darex.config.sections import TASKS
from fl_darex.flower.optimizers import OPTIMIZERS
from fl_darex.rescaling.rules import CURVATURE, LABELLED, RULES, SERVER_RULES
from fl_darex.wire.codings import CODINGS, scales_of


@dataclass(frozen=True)
class Use:
    """What some keys are for.

    Attributes:
        keys: As ``section.key``.
        words: Completes "it is for".
        counts: Whether they do something in a run.
    """

    keys: tuple[str, ...]
    words: str
    counts: Callable[[RunConfig], bool]


def _task(*names: str) -> Callable[[RunConfig], bool]:
    """Return whether the task is one of these, or somebody's own, which may use any setting."""
    return lambda run: run.task.name in names or run.task.name not in TASKS


def _packs(run: RunConfig) -> bool:
    return run.compress.chosen.packs


def _versions(run: RunConfig) -> bool:
    return POLICIES.choose(run.compress.downlink).versions


def _drops_on_the_way_down(run: RunConfig) -> bool:
    """Whether the policy is ``server``, or somebody's own, which may use any setting."""
    return run.compress.downlink == "server" or run.compress.downlink not in POLICIES.first


def _draws(run: RunConfig) -> bool:
    return _packs(run) and run.compress.chosen.seeded and run.compress.p > 0


def _calibrates(run: RunConfig, but: str = "") -> bool:
    method, q = run.compress.method, run.compress.q
    return (q in RULES and q != but) or method == "wanda" or method not in METHODS.first


def _has_scales(run: RunConfig) -> bool:
    return len(scales_of(CODINGS.choose(run.compress.values))) > 1


def _validates(run: RunConfig) -> bool:
    return run.compress.q in SERVER_RULES


def _scores(run: RunConfig) -> bool:
    return run.federation.evaluate != "none" or run.task.test


def _pulls(run: RunConfig) -> bool:
    return run.train.optimizer == "adamr" and run.train.delta_decay > 0


def _adapts(run: RunConfig, field: str) -> bool:
    return run.train.chosen is not None and field in run.train.chosen.reads


def _of_adapters() -> Iterable[Use]:
    """Yield the settings that some adapters read."""
    for field in ("alpha", "dropout", "targets", "size"):
        owners = ", ".join(repr(name) for name, row in ADAPTERS.first.items() if field in row.reads)
        words, key = f"train.adapter = {owners}", f"train.lora-{field}"
        if field == "size":
            key = "train.adapter-size"
        else:
            words = f"train.lora-rank of 1 or more, or {words}"
        yield Use((key,), words, partial(_adapts, field=field))


def _options(section: str, chooser: str, rows: Mapping[str, Any]) -> Iterable[Use]:
    """Yield the options of what is chosen by name: each is for the rows that have it."""
    for option in dict.fromkeys(name for row in rows.values() for name in row.options):
        owners = [name for name, row in rows.items() if option in row.options]
        words = f"{section}.{chooser} = {' or '.join(map(repr, owners))}"

        def counts(run: RunConfig, option: str = option) -> bool:
            return option in getattr(run, section).chosen.options

        yield Use((f"{section}.{option.replace('_', '-')}",), words, counts)


USES: tuple[Use, ...] = (
    Use(
        ("task.dataset", "task.subset", "task.holdout"),
        "another task than 'digits', which brings its own data",
        lambda run: run.task.name != "digits",
    ),
    Use(
        ("task.max-length",),
        "task.name = 'text-classification' or 'causal-lm'",
        _task("text-classification", "causal-lm"),
    ),
    Use(
        ("task.template", "task.packing", "task.test"),
        "task.name = 'causal-lm'",
        _task("causal-lm"),
    ),
    Use(
        ("task.max-new-tokens",),
        "task.name = 'causal-lm' with task.metric = 'exact-match'",
        lambda run: (
            _task()(run) or (run.task.name, run.task.metric) == ("causal-lm", "exact-match")
        ),
    ),
    Use(
        ("task.metric",),
        "runs that measure something: federation.evaluate = 'server' or 'clients', task.test, or "
        "compress.q = 'q-v' or 'layer-q-v'",
        lambda run: _scores(run) or run.compress.q in LABELLED,
    ),
    Use(
        ("task.eval-examples",),
        "federation.evaluate = 'server' or 'clients'",
        lambda run: run.federation.evaluate != "none",
    ),
    Use(
        ("federation.evaluate-every",),
        "federation.evaluate = 'server'",
        lambda run: run.federation.evaluate == "server",
    ),
    Use(
        ("federation.alpha",),
        "federation.partition = 'dirichlet'",
        lambda run: run.federation.partition == "dirichlet",
    ),
    Use(
        ("federation.classes-per-client",),
        "federation.partition = 'pathological'",
        lambda run: run.federation.partition == "pathological",
    ),
    Use(
        ("federation.partition-column",),
        "federation.partition = 'natural'",
        lambda run: run.federation.partition == "natural",
    ),
    Use(
        ("train.eval-batch-size",),
        "runs that measure something: federation.evaluate = 'server' or 'clients', task.test, "
        f"compress.method = 'wanda', or a search for compress.q but {CURVATURE!r}",
        lambda run: _scores(run) or _validates(run) or _calibrates(run, CURVATURE),
    ),
    Use(
        ("train.group-by-length",),
        "texts: task.name = 'text-classification' or 'causal-lm'",
        _task("text-classification", "causal-lm"),
    ),
    Use(
        ("train.delta-decay",),
        "train.optimizer = 'adamr'",
        lambda run: run.train.optimizer == "adamr",
    ),
    Use(
        ("train.norm", "train.anchor"),
        "train.optimizer = 'adamr' with train.delta-decay above 0",
        _pulls,
    ),
    Use(
        ("train.weight-decay",),
        "train.optimizer = 'adamw'",
        lambda run: run.train.optimizer == "adamw",
    ),
    Use(
        ("train.lora-rank",),
        "train.adapter = 'auto', or an adapter that has a rank",
        lambda run: run.train.adapter == "auto" or _adapts(run, "rank"),
    ),
    *_of_adapters(),
    Use(
        ("compress.lora",),
        "LoRA: train.lora-rank of 1 or more, or train.adapter = 'lora'",
        lambda run: run.train.chosen is not None and run.train.chosen.product,
    ),
    Use(
        ("compress.p",),
        "runs without compress.budget, and a compress.method that drops something, or "
        "compress.downlink = 'server'",
        lambda run: (
            not run.compress.budget
            and (_packs(run) or (_drops_on_the_way_down(run) and run.compress.downlink_p == "same"))
        ),
    ),
    Use(("compress.q",), "a compress.method that sends packets, not 'dense'", _packs),
    Use(
        ("compress.calibration-examples",),
        "compress.method = 'wanda', or the searches for compress.q on the client: "
        + ", ".join(map(repr, RULES)),
        _calibrates,
    ),
    Use(
        ("compress.mask", "compress.rotate", "train.masked"),
        "a compress.method that draws what survives, such as 'dare', with compress.p above 0",
        _draws,
    ),
    Use(
        ("compress.count",),
        "a compress.method that draws what survives, such as 'dare', with compress.p above 0 and "
        "another compress.mask than 'disjoint', whose count is always exact",
        lambda run: _draws(run) and run.compress.mask != "disjoint",
    ),
    Use(
        ("compress.values",),
        "runs without compress.budget, and packets, on the way up or, with "
        "compress.downlink-values = 'same', on the way down",
        lambda run: (
            not run.compress.budget
            and (_packs(run) or (_versions(run) and run.compress.downlink_values == "same"))
        ),
    ),
    Use(
        ("compress.scale",),
        "compress.values = 'eden1' to 'eden4' in packets on the way up",
        lambda run: _packs(run) and (run.compress.budget != "" or _has_scales(run)),
    ),
    Use(
        ("compress.dense-below",),
        "packets, and compress.method and compress.downlink are both 'dense'",
        lambda run: _packs(run) or _versions(run),
    ),
    Use(("compress.downlink-p",), "compress.downlink = 'server'", _drops_on_the_way_down),
    Use(("compress.downlink-values",), "compress.downlink = 'update' or 'server'", _versions),
    *_options("compress", "method", METHODS.first),
    *_options("server", "strategy", OPTIMIZERS.first),
    Use(
        ("server.average-from",),
        "server.average = 'uniform' or 'ema'",
        lambda run: run.server.average != "none",
    ),
    Use(
        ("server.average-decay",),
        "server.average = 'ema'",
        lambda run: run.server.average == "ema",
    ),
    Use(
        ("server.validation-examples",),
        "compress.q = {!r} or {!r}".format(*SERVER_RULES),
        _validates,
    ),
)
"""Each key that does nothing in some runs."""
