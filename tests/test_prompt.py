"""What a person sees at a prompt: names to complete, choices, objects in few words."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg

import fl_darex
from fl_darex.clients import DarexMod
from fl_darex.compression import METHODS, POLICIES, SparseUpdate, Uplink
from fl_darex.compression.choices import COUNTS, MASKS, QChoice
from fl_darex.compression.update import WholeUpdate
from fl_darex.delta import Delta
from fl_darex.flower.ledger import Entry, Ledger, LedgerGrid
from fl_darex.masks import keep_threshold
from fl_darex.optim import AdamR
from fl_darex.positions import SeededMask
from fl_darex.positions.union import UnionMask
from fl_darex.pruning import magnitude
from fl_darex.rescaling.rules import RULES, SERVER_RULES
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.packet import encode, open_packet

LAZY = ["fl_darex", "fl_darex.apps", "fl_darex.rescaling", "fl_darex.simulation"]


@pytest.mark.parametrize("name", LAZY)
def test_dir_knows_every_name_that_is_loaded_on_use_and_loads_none(name: str) -> None:
    look = f"import sys, {name} as it; print(*dir(it)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()[0].split()
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(shown)
    assert done.stdout.splitlines()[1] == "False"
    for known in module.__all__:
        assert getattr(module, known) is not None


def test_the_modules_with_lazy_names_are_these() -> None:
    root = Path(fl_darex.__file__).parent
    found = [file for file in root.rglob("*.py") if "\ndef __getattr__" in file.read_text("utf-8")]
    names = [".".join(file.relative_to(root.parent).with_suffix("").parts) for file in found]
    assert sorted(name.removesuffix(".__init__") for name in names) == LAZY


def choices(hint: Any) -> set[str]:
    """The texts that a type allows by name."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return set().union(*map(choices, get_args(hint)))


def test_the_strategys_choices_are_in_its_types_and_are_those_of_the_tables() -> None:
    hints = get_type_hints(DarexStrategy.__init__)
    assert choices(hints["mask"]) == set(MASKS) == {"client", "round", "disjoint", "auto"}
    assert choices(hints["count"]) == set(COUNTS) == {"random", "exact"}
    assert choices(hints["q"]) == {"dare", *RULES, *SERVER_RULES} == set(get_args(QChoice))
    assert choices(hints["values"]) == set(CODINGS.first) == choices(hints["downlink_values"])
    assert choices(hints["method"]) == set(METHODS.first)
    assert choices(hints["downlink"]) == set(POLICIES.first)
    assert choices(hints["dense_below"]) == {"auto"}
    assert choices(hints["replies"]) == {"auto", "mean", "each", "support", "own"}
    uplink = get_type_hints(Uplink)
    assert all(choices(uplink[name]) == choices(hints[name]) for name in ("mask", "count", "q"))


BEFORE = {f"layer{i}.weight": np.zeros((40, 50), np.float32) for i in range(60)}
DELTA = Delta({name: np.full_like(a, i + 1) for i, (name, a) in enumerate(BEFORE.items())}, BEFORE)


def large() -> dict[str, Any]:
    found = magnitude(DELTA, 0.9)
    packet = encode(found)
    opened = open_packet(packet, DELTA.layout, found.mask, q=None, values="fp16")
    model = torch.nn.Linear(300, 300)
    ledger = Ledger()
    for client in range(1000):
        ledger.add(Entry(1, client, "train", 1))
    grid = InProcessGrid(lambda message, context: message, 1000)
    return {
        "survivors": found,
        "listed mask": found.mask,
        "packet": opened,
        "packet update": SparseUpdate.of_packet(opened),
        "survivors' update": SparseUpdate.of_survivors(found),
        "whole update": WholeUpdate(DELTA.layout, lambda: BEFORE),
        "union": UnionMask(tuple(SeededMask(1, 1, n, keep_threshold(0.9)) for n in range(99))),
        "delta": DELTA,
        "ledger": ledger,
        "grid": grid,
        "ledger grid": LedgerGrid(grid, ledger),
        "mod": DarexMod(),
        "strategy": DarexStrategy(FedAvg()),
        "optimizer": AdamR(model.parameters(), anchor=[p.detach() for p in model.parameters()]),
    }


@pytest.mark.parametrize("name", large())
def test_an_object_that_holds_a_model_is_shown_in_few_words(name: str) -> None:
    shown = repr(large()[name])
    assert len(shown) < 450 and "array(" not in shown and "tensor(" not in shown
    assert "layer0" not in shown and "0x0" not in shown.replace("at 0x", "")


def test_what_is_shown_is_how_much_there_is() -> None:
    objects = large()
    assert repr(objects["survivors"]) == (
        "Survivors(layout=Layout(specs=<60 entries>), mask=ListedMask(where=<60 names>, seed=0, "
        "round=0, slot=0, share=4294967296), numbers=float32[12000], counts=<60 entries>, "
        "dense={}, raw={}, q=1.0)"
    )
    assert repr(objects["ledger"]) == "Ledger(<1,000 entries>)"
    assert repr(objects["whole update"]) == "WholeUpdate(layout=Layout(specs=<60 entries>))"
