"""Mask first, then train: only what the round's mask keeps has gradient and state, and moves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apps import BASE, numpy_app, step_of
from federations import Federation, fedavg, rounds
from flwr.app import Message
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file
from test_cli import fl_darex, weights
from torch.nn.utils import clip_grad_norm_

from fl_darex.clients import DarexMod, client_app, told
from fl_darex.config import make_config
from fl_darex.errors import ConfigError, DarexError, DeltaError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies import DarexStrategy, SecureAggregation
from fl_darex.strategies.server_app import expect, make_app
from fl_darex.training.exchange import to_numpy, write
from fl_darex.training.loop import train
from fl_darex.training.masked import MaskedParameters
from fl_darex.training.optimizer import make_optimizer
from fl_darex.training.session import Session

SMALL = {"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 3}
MASKED = {"train.masked": True, "train.lr": 0.02, "compress.p": 0.99, "compress.mask": "round"}
ADAMW = {"train.optimizer": "adamw"}

Kept = dict[str, np.ndarray[Any, Any]]


def session(**settings: Any) -> Session:
    return Session(
        make_config(SMALL | MASKED | {k.replace("__", "."): v for k, v in settings.items()})
    )


def kept_by(made: Session, round_: int = 1, slot: int = 0) -> Kept:
    asked = made.config.uplink(made.dense).fitted(made.tensors)
    return asked.drawn(round_, slot).in_layout(asked.layout(made.tensors))


def trained(made: Session, kept: Kept | None) -> dict[str, np.ndarray[Any, Any]]:
    write(to_numpy(made.pretrained), made.tensors)
    train(made, 0, 1, kept)
    return to_numpy(made.tensors)


def split(array: np.ndarray[Any, Any], positions: Any) -> tuple[Any, Any]:
    """The entries at positions, and all others."""
    flat = array.reshape(-1)
    return flat[positions], np.delete(flat, positions)


# --- the compact parameters -----------------------------------------------------------------------


class Net(torch.nn.Module):
    """A tensor used twice, one masked away, one sent whole, and one that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(12, 8))
        self.across = torch.nn.Parameter(torch.randn(8, 6).t())  # strides of the other order
        self.lost = torch.nn.Parameter(torch.randn(8))
        self.bias = torch.nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.table[x] + self.table[x + 1] * self.lost
        return torch.nn.functional.linear(both, self.across, self.bias).square().mean()


KEPT: Kept = {
    "table": np.array([0, 7, 8, 50, 95]),
    "across": np.array([1, 6, 40, 47]),
    "lost": np.array([], np.int64),
}


def steps(
    model: Net, optimizer: torch.optim.Optimizer, each: Any, parameters: Any, parts: int
) -> list[list[torch.Tensor]]:
    found = []
    for step in range(5):
        for part in range(parts):
            model(torch.arange(part + step, part + step + 4)).backward()
        each("before")
        clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        each("after")
        found.append([p.detach().clone() for p in model.parameters()])
    return found


@pytest.mark.parametrize("parts", [1, 3], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_adamw_on_gradients_that_are_zero_beside_the_mask(
    parts: int, decay: float
) -> None:
    """The reference has full gradients and state; AdamW's decay would move what it drops."""
    mine, full = Net(), Net()
    named = dict(mine.named_parameters())
    with MaskedParameters(named, KEPT) as masked:
        optimizer = torch.optim.AdamW(masked.trained.values(), 0.01, weight_decay=decay)

        def carry(when: str) -> None:
            if when == "after":
                masked.write()
            assert all(named[name].grad is None for name in KEPT)

        places = masked.in_place_of(mine.parameters())
        found = steps(mine, optimizer, carry, places, parts)
    flags = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in full.named_parameters()}
    for name, flag in flags.items():
        flag[torch.from_numpy(KEPT[name]) if name in KEPT else slice(None)] = True
    start = copy.deepcopy(full)

    def zero(when: str) -> None:
        for (name, p), first in zip(full.named_parameters(), start.parameters(), strict=True):
            beside = ~flags[name].reshape(p.shape)
            with torch.no_grad():
                if when == "before":
                    p.grad[beside] = 0.0  # type: ignore[index]
                else:
                    p[beside] = first[beside]

    reference = torch.optim.AdamW(full.parameters(), 0.01, weight_decay=decay)
    wanted = steps(full, reference, zero, list(full.parameters()), parts)
    for one, other in zip(found, wanted, strict=True):
        for name, mine_now, full_now, first in zip(
            named, one, other, start.parameters(), strict=True
        ):
            # Round-off: the norm by which both clip is added up in another order.
            torch.testing.assert_close(mine_now, full_now, rtol=1e-5, atol=1e-7)
            beside = ~flags[name].reshape(first.shape)
            assert torch.equal(mine_now[beside], first[beside])
    assert not torch.equal(found[-1][0], start.table)


def test_state_and_gradients_are_those_of_the_survivors_and_hooks_are_taken_away() -> None:
    model = Net()
    masked = MaskedParameters(dict(model.named_parameters()), KEPT)
    optimizer = torch.optim.AdamW(masked.trained.values(), 0.01)
    with masked:
        model(torch.arange(4)).backward()
        assert [name for name, p in model.named_parameters() if p.grad is not None] == ["bias"]
        assert {n: p.grad.shape for n, p in masked.trained.items()} == {  # type: ignore[union-attr]
            "table": (5,),
            "across": (4,),
            "bias": (6,),
        }
        optimizer.step()
    moments = [state["exp_avg"].numel() for state in optimizer.state.values()]
    assert sum(moments) == 5 + 4 + 6
    model(torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_mask_that_keeps_nothing_at_all_says_what_to_do() -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(
        ConfigError, match=r"keeps none of the model's entries.* smaller compress\.p"
    ):
        MaskedParameters(dict(model.named_parameters()), {"weight": np.array([], np.int64)})


# --- a client's round -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        ADAMW | {"train.weight-decay": 0.1},
        {"train.norm": "l1", "train.anchor": "pretrained"},
        {"train.grad-accumulation": 3, "train.batch-size": 8},
        {"train.precision": "bf16"},
        {"train.precision": "fp16"},
        {"train.max-grad-norm": 0.0, "compress.count": "exact"},
        {"train.gradient-checkpointing": True},
        {"compress.mask": "client", "train.schedule": "linear", "train.warmup": 0.5},
    ],
    ids=str,
)
def test_only_kept_entries_and_whole_tensors_move(settings: dict[str, Any]) -> None:
    made = session(**settings)
    kept, start = kept_by(made), to_numpy(made.pretrained)
    after = trained(made, kept)
    assert list(made.whole) == ["classifier.bias"] and set(after) == set(kept) | set(made.whole)
    moved = 0
    for name, positions in kept.items():
        (inside, beside), (first, rest) = (
            split(after[name], positions),
            split(start[name], positions),
        )
        assert beside.tobytes() == rest.tobytes()
        assert np.isfinite(inside).all()
        moved += np.count_nonzero(inside != first)
    assert moved > 0.9 * sum(map(len, kept.values()))  # a dead unit has no gradient
    assert (after["classifier.bias"] != start["classifier.bias"]).all()
    assert all(p.grad is None for p in made.trained.values())


def test_the_optimizer_of_a_round_has_state_for_survivors_and_whole_tensors_alone() -> None:
    for settings in ({}, ADAMW):
        made = session(**settings)
        kept = kept_by(made)
        with MaskedParameters(made.trained, kept) as masked:
            optimizer = make_optimizer(made, masked)
            model = made.model.train()
            inputs = made.task.collate(made.examples(0)[:8])
            model(**inputs).loss.backward()
            optimizer.step()
        survivors = sum(map(len, kept.values()))
        assert sum(s["exp_avg"].numel() for s in optimizer.state.values()) == survivors + 10
        assert survivors < 0.011 * sum(p.numel() for p in made.trained.values())


def test_training_what_a_mask_of_everything_keeps_is_training() -> None:
    """To round-off: gradients are the same, their norm is added up in another order."""
    made = session(**ADAMW, compress__p=0.0)
    every = {name: np.arange(p.numel()) for name, p in made.trained.items()}
    one, other = trained(made, every), trained(made, None)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamr", "adamw"])
def test_tensors_that_go_whole_have_a_learning_rate_of_their_own(optimizer: str) -> None:
    slow = {"train.dense-lr": 1e-4, "train.optimizer": optimizer, "train.delta-decay": 0.0}
    slow |= {"train.max-grad-norm": 0.0, "train.local-steps": 1}
    if optimizer == "adamw":
        del slow["train.delta-decay"]
    for masked in (True, False):
        made = session(**slow, **{"train.masked": masked})
        after, start = trained(made, kept_by(made) if masked else None), to_numpy(made.pretrained)
        step = {name: float(np.abs(after[name] - start[name]).max()) for name in after}
        # Adam's first step is the learning rate in length, for all but vanishing gradients.
        assert step["classifier.bias"] == pytest.approx(1e-4, rel=0.01)
        assert step["classifier.weight"] == pytest.approx(0.02, rel=0.01)


def test_what_a_fresh_head_is_trained_with_does_not_depend_on_the_learning_rate_of_the_rest() -> (
    None
):
    made = session(**{"train.masked": False, "train.dense-lr": 0.5, "train.optimizer": "adamr"})
    made.dense = ("classifier.weight",)
    groups = make_optimizer(made, whole=["classifier.weight", "classifier.bias"]).param_groups
    found = {tuple(g["param_names"])[-1]: (g["lr"], g["delta_decay"]) for g in groups}
    assert found["classifier.weight"] == (0.5, 0.0)
    assert found["classifier.bias"] == (0.5, 0.1)
    assert sorted(found.values()) == [(0.02, 0.1), (0.5, 0.0), (0.5, 0.1)]


# --- a run ----------------------------------------------------------------------------------------


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    made = make_config(SMALL | MASKED | settings)
    simulate_in_process(make_app(made, [RunFolder(folder)]), client_app.app, clients=2)
    return dict(json.loads((folder / "summary.json").read_text()))


@pytest.mark.parametrize("method", ["dare", "structured"])
def test_with_a_shared_mask_the_way_down_is_as_small_as_the_way_up(
    tmp_path: Path, method: str
) -> None:
    found = run(tmp_path / "run", **{"compress.method": method, "federation.rounds": 4})
    assert found["failures"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").open()]
    for line in lines[1:]:
        # A packet each way; terms and settings ride down, metrics up.
        assert abs(line["down_bytes"] - line["up_bytes"]) < 1000 * 2
        assert line["q"] == 1.0
        assert line["dense_down_bytes"] / line["down_bytes"] > 100
    assert found["up_ratio"] > 130 and found["total_ratio"] > 120


def test_a_fixed_mask_moves_the_same_entries_in_all_rounds(tmp_path: Path) -> None:
    moved = {}
    for rotate in (True, False):
        run(tmp_path / str(rotate), **{"compress.rotate": rotate, "federation.rounds": 3})
        after = load_file(tmp_path / str(rotate) / "model" / "model.safetensors")
        made = session(**{"compress.rotate": rotate})
        start, kept = to_numpy(made.pretrained), kept_by(made, 3)
        beside = [split(after[n] != start[n], at)[1] for n, at in kept.items() if n in after]
        moved[rotate] = sum(map(np.count_nonzero, beside))
    assert moved[False] == 0 and moved[True] > 1000


@pytest.mark.slow
def test_all_engines_give_the_same_bits(tmp_path: Path) -> None:
    run(tmp_path / "here")
    made = make_config(SMALL | MASKED).to_toml()
    (tmp_path / "run.toml").write_text(made)
    for engine in ("local", "ray", "flower"):
        done = fl_darex("run", "run.toml", "--out", engine, "--engine", engine, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert weights(tmp_path / engine) == weights(tmp_path / "here")


def test_check_says_that_nothing_is_dropped_and_what_ever_moves() -> None:
    _, found = expect(make_config(SMALL | MASKED | {"compress.rotate": False}))
    assert found.noise == 0.0
    text = str(found)
    assert "noise of dropping and rounding, a round: 0, nothing is dropped" in text
    assert "mask first: clients train about 2,022 of 202,176 entries a round" in text
    assert "one mask for the whole run: about 2,022 of 202,176 entries ever move" in text
    _, found = expect(make_config(SMALL))
    assert found.masks == () and found.noise == pytest.approx((99 / 2) ** 0.5)


def test_the_app_without_the_mod_is_an_error_and_not_training_of_everything() -> None:
    bare = ClientApp()
    bare.train()(client_app.train)
    made = make_config(SMALL | MASKED)
    with pytest.raises(DarexError, match="no client's reply counted"):
        simulate_in_process(make_app(made, []), bare, clients=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"compress.method": "magnitude", "compress.mask": "client"},
            "chooses by value afterwards",
        ),
        ({"compress.method": "wanda", "compress.mask": "client"}, "chooses by value afterwards"),
        ({"compress.mask": "auto"}, r"compress\.mask = 'auto' does not go with training what the"),
        ({"compress.q": 0.5}, r"compress\.q = 0\.5 does not go with train\.masked = true"),
        ({"compress.q": "q-v"}, r"leave compress\.q = 'dare'"),
        ({"compress.q": "server-validation"}, r"leave compress\.q = 'dare'"),
        ({"compress.q": "group-server-validation"}, r"leave compress\.q = 'dare'"),
        ({"compress.q": "curvature"}, r"leave compress\.q = 'dare'"),
        ({"train.lora-rank": 2, "compress.lora": "product"}, r"set compress\.lora = 'factors'"),
    ],
    ids=str,
)
def test_what_cannot_be_known_before_training_is_refused_with_the_way_out(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(MASKED | settings)


def test_adapters_are_masked_as_any_tensor(tmp_path: Path) -> None:
    found = run(tmp_path / "run", **{"train.lora-rank": 2, "compress.p": 0.5})
    assert found["failures"] == 0


# --- apps of one's own ----------------------------------------------------------------------------


def masking(message: Message, context: Any, call_next: Any) -> Message:
    """Keep of what an app changes what the mask keeps, as if only that had been trained."""
    asked, before = told(), to_arrays(next(iter(message.content.array_records.values())))
    reply = call_next(message, context)
    if asked is None or not asked.mask_first:
        return reply
    name, record = next(iter(reply.content.array_records.items()))
    after, where = to_arrays(record), asked.positions()
    for key, positions in where.items():
        new = before[key].reshape(-1).copy()
        new[positions] = after[key].reshape(-1)[positions]
        after[key] = new.reshape(before[key].shape)
    reply.content[name] = to_record(after)
    return reply


def test_an_app_of_ones_own_finds_the_mask_and_nothing_of_its_change_is_scaled() -> None:
    strategy = DarexStrategy(
        fedavg(), p=0.9, mask="round", mask_first=True, values="fp32", dense_below=0
    )
    app = numpy_app([DarexMod(), masking])
    after = to_arrays(rounds(strategy, Federation(app), 1).arrays)
    assert strategy.counted == 4 and strategy.q == 1.0
    weights_, total = np.arange(1, 5), 10
    mean = (
        sum(w * step_of(i, 1, BASE["layer.weight"].shape) for i, w in enumerate(weights_)) / total
    )
    changed = after["layer.weight"] != BASE["layer.weight"]
    assert 0.05 < changed.mean() < 0.15
    np.testing.assert_allclose(
        (after["layer.weight"] - BASE["layer.weight"])[changed], mean[changed], atol=1e-6
    )
    assert told() is None


def test_a_change_beside_the_mask_costs_that_reply_with_the_way_out() -> None:
    strategy = DarexStrategy(fedavg(), p=0.9, mask="round", mask_first=True)
    said = r"entries of 'head.weight' changed that this round's mask drops.*clients\.told\(\)"
    with pytest.raises(DeltaError, match=said):  # no round would mend it
        rounds(strategy, Federation(numpy_app([DarexMod()])), 1)


def test_masks_come_first_under_secure_aggregation_too() -> None:
    clear, sealed = (
        DarexStrategy(fedavg(), p=0.9, mask="round", mask_first=True, values="fp32", **more)
        for more in ({}, {"secure": SecureAggregation(range=0.1, max_weight=10)})
    )
    one, other = (
        to_arrays(rounds(s, Federation(numpy_app([DarexMod(), masking])), 2).arrays)
        for s in (clear, sealed)
    )
    assert sealed.counted == 4
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


@pytest.mark.parametrize("downlink", ["dense", "update", "server"])
@pytest.mark.parametrize("mask", ["client", "round"])
def test_fixed_masks_are_those_of_no_round_and_a_packet_of_an_old_round_is_refused(
    downlink: str, mask: Any
) -> None:
    """What came in round 1 is sent again in round 2: its mask is right, and its round is not."""
    kept: dict[int, Message] = {}

    def replaying(message: Message, context: Any, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        partition = int(context.node_config["partition-id"])
        if partition == 0 and reply.content.array_records:
            record = next(iter(reply.content.array_records.values()))
            name = next(iter(reply.content.array_records))
            if partition in kept:
                reply.content[name] = kept[partition]  # type: ignore[assignment]
            kept.setdefault(partition, record)  # type: ignore[arg-type]
        return reply

    strategy = DarexStrategy(fedavg(), p=0.9, mask=mask, rotate=False, downlink=downlink)
    app = numpy_app([replaying, DarexMod()])
    rounds(strategy, Federation(app), 2)
    assert strategy.counted == 3


@pytest.mark.parametrize("method", ["dare", "structured"])
@pytest.mark.parametrize("count", ["random", "exact"])
@pytest.mark.parametrize("downlink", ["update", "server"])
def test_only_the_entries_of_fixed_masks_ever_move(method: str, count: Any, downlink: str) -> None:
    strategy = DarexStrategy(
        *(fedavg(), 0.9),
        mask="round",
        rotate=False,
        method=method,
        count=count,
        downlink=downlink,
        dense_below=0,
        **({"columns": 0.5} if method == "structured" else {}),
    )
    one, many = (
        to_arrays(rounds(strategy, Federation(numpy_app([DarexMod()])), n).arrays) for n in (1, 4)
    )
    first = {name: one[name] != BASE[name] for name in BASE}
    last = {name: many[name] != BASE[name] for name in BASE}
    if downlink == "update":
        assert all((first[name] == last[name]).all() for name in BASE)
    assert 0 < sum(map(np.sum, last.values())) < 0.15 * sum(a.size for a in BASE.values())
