"""Diff pruning: gates, what it finds where the answer is known, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fl_darex.analysis.diff_pruning import DiffPruning, diff_prune
from fl_darex.analysis.diff_pruning.gates import median_gates, open_probability, sample_gates
from fl_darex.analysis.diff_pruning.sparse_delta import FixedDelta, GatedDelta
from fl_darex.analysis.diff_pruning.stateless import Stateless
from fl_darex.errors import DeltaError
from fl_darex.training.exchange import exchanged
from fl_darex.wire import decode, encode

INPUTS = 30


class Net(torch.nn.Module):
    """Two linear layers side by side: the loss sees each entry of each by itself."""

    def __init__(self):
        super().__init__()
        self.left = torch.nn.Linear(INPUTS, 2)
        self.right = torch.nn.Linear(INPUTS, 2, bias=False)

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], dim=-1)


def mean_square(model, batch):
    return F.mse_loss(model(batch["x"]), batch["y"])


PLANTED = {
    "left.weight": {(0, 3): 1.0, (1, 17): -0.8, (1, 29): 0.6},
    "left.bias": {(1,): 0.7},
    "right.weight": {},
}
ENTRIES = 2 * (2 * INPUTS) + 2
QUICK = DiffPruning(
    p=1 - 4 / ENTRIES, steps=150, finetune_steps=80, penalty=2e-3, lr=0.05, max_grad_norm=0, seed=3
)


def planted(dtype=torch.float32):
    """A net, and batches that a known sparse delta explains but for noise."""
    torch.manual_seed(0)
    net = Net()
    tuned = Net()
    tuned.load_state_dict(net.state_dict())
    for name, entries in PLANTED.items():
        for position, value in entries.items():
            tuned.state_dict()[name][position] += value
    batches = []
    for _ in range(20):
        x = torch.randn(64, INPUTS)
        batches.append(
            {"x": x.to(dtype), "y": (tuned(x).detach() + 0.1 * torch.randn(64, 4)).to(dtype)}
        )
    return net.to(dtype), batches


def support(survivors):
    shapes = {spec.name: spec.shape for spec in survivors.layout}
    return {
        name: {tuple(map(int, np.unravel_index(int(i), shapes[name]))) for i in where}
        for name, where in survivors.positions.items()
    }


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# --- gates ---------------------------------------------------------------------------------------


def test_gates_are_the_formula():
    alpha = torch.linspace(-6, 6, 25, dtype=torch.float64)
    u = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    a, v = alpha.numpy(), u.numpy()
    s = 1 / (1 + np.exp(-(np.log(v) - np.log(1 - v) + a)))
    np.testing.assert_allclose(sample_gates(alpha, u), np.clip(s * 3.0 - 1.5, 0, 1), atol=1e-12)
    np.testing.assert_allclose(median_gates(alpha), sample_gates(alpha, torch.full_like(u, 0.5)))
    np.testing.assert_allclose(open_probability(alpha), 1 / (1 + np.exp(-a)), atol=1e-12)


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 1.0])
def test_gates_are_open_as_often_as_their_probability_says(alpha):
    draws = 100_000
    torch.manual_seed(0)
    at = torch.full((draws,), alpha)
    gates = sample_gates(at, torch.rand(draws))
    p = float(open_probability(at[0]))
    assert abs(float((gates > 0).float().mean()) - p) <= 5 * (p * (1 - p) / draws) ** 0.5
    assert ((gates >= 0) & (gates <= 1)).all() and (gates == 1).any() and (gates == 0).any()


def test_the_edges_of_the_uniform_numbers_give_finite_gates_and_gradients():
    alpha = torch.zeros(2, requires_grad=True)
    gates = sample_gates(alpha, torch.tensor([0.0, 1 - 2**-24]))
    gates.sum().backward()
    assert gates.tolist() == [0.0, 1.0] and torch.isfinite(alpha.grad).all()


def by_hand(w, alpha, group, u, u_group, x, y, base, penalty):
    """Float64 transcription of objective and gradients for ``mean((x (base + zg z w)' - y)^2)``."""

    def gate(a, v):
        s = 1 / (1 + np.exp(-(np.log(v) - np.log(1 - v) + a)))
        t = 3 * s - 1.5
        return np.clip(t, 0, 1), 3 * s * (1 - s) * ((t > 0) & (t < 1))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    z, dz = gate(alpha, u)
    zg, dzg = gate(group, u_group)
    residual = x @ (base + zg * z * w).T - y
    g = 2 * residual.T @ x / residual.size
    share, one = sigmoid(alpha), sigmoid(group)
    loss = (residual**2).mean() + penalty * one * share.sum()
    return (
        loss,
        g * zg * z,
        g * zg * w * dz + penalty * one * share * (1 - share),
        (g * z * w).sum() * dzg + penalty * one * (1 - one) * share.sum(),
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_gradients_are_those_of_a_transcription(seed, penalty):
    rng = np.random.default_rng(seed)
    base, w, alpha = (rng.normal(size=(3, 4)) for _ in range(3))
    group = rng.normal()
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    gated = GatedDelta({"w": torch.tensor(base)}, structured=True)
    with torch.no_grad():
        gated.values["w"].copy_(torch.tensor(w))
        gated.gates["w"].copy_(torch.tensor(alpha))
        gated.group_gates["w"].fill_(group)
    torch.manual_seed(seed)
    u = torch.rand(3, 4, dtype=torch.float64).numpy()
    u_group = torch.rand((), dtype=torch.float64).numpy()
    torch.manual_seed(seed)
    output = torch.tensor(x) @ gated.sampled()["w"].T
    loss = F.mse_loss(output, torch.tensor(y)) + penalty * gated.expected_nonzero()
    loss.backward()
    found = (loss.detach(), gated.values["w"].grad, gated.gates["w"].grad)
    expected = by_hand(w, alpha, group, u, u_group, x, y, base, penalty)
    for ours, theirs in zip((*found, gated.group_gates["w"].grad), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_expected_number_counts_only_what_has_a_gate():
    base = {"a": torch.zeros(3, 4), "head": torch.zeros(100)}
    gated = GatedDelta(base, ["head"], alpha=0.0)
    assert gated.expected_nonzero().item() == 6.0
    grouped = GatedDelta(base, ["head"], alpha=0.0, structured=True)
    assert grouped.expected_nonzero().item() == 3.0
    assert GatedDelta(base, base).expected_nonzero().item() == 0.0


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
def test_a_planted_sparse_delta_is_found_exactly(structured):
    net, batches = planted()
    chosen = replace(QUICK, structured=structured)
    survivors = diff_prune(net, batches, chosen, loss=mean_square)
    assert support(survivors) == {name: set(entries) for name, entries in PLANTED.items()}
    full = survivors.rescaled()
    for name, entries in PLANTED.items():
        for position, value in entries.items():
            assert full[name][position] == pytest.approx(value, abs=0.02)
    assert survivors.count == 4 and survivors.q == 1.0


@pytest.mark.parametrize("kept", [0, 1, 3, 10, ENTRIES])
def test_exactly_as_many_entries_survive_as_p_says(kept):
    net, batches = planted()
    p = min(1 - kept / ENTRIES, 0.999)
    chosen = replace(QUICK, p=p, steps=5, finetune_steps=2, penalty=0.0)
    assert diff_prune(net, batches, chosen, loss=mean_square).count == kept


def test_fewer_survive_where_more_gates_are_closed():
    net, batches = planted()
    chosen = replace(QUICK, p=0.0, penalty=1e-2)
    survivors = diff_prune(net, batches, chosen, loss=mean_square)
    assert support(survivors) == {name: set(entries) for name, entries in PLANTED.items()}


def test_a_gate_for_each_tensor_switches_off_whole_tensors():
    net, batches = planted()
    chosen = replace(QUICK, p=0.0, penalty=1e-4, finetune_steps=0)  # too low to close every gate
    alone = diff_prune(net, batches, chosen, loss=mean_square)
    grouped = diff_prune(net, batches, replace(chosen, structured=True), loss=mean_square)
    assert alone.positions["right.weight"].size > 5
    assert grouped.positions["right.weight"].size == 0
    assert grouped.positions["left.weight"].size > 20


def test_fine_tuning_moves_the_survivors_and_nothing_else():
    net, batches = planted()
    short = replace(QUICK, steps=60, finetune_steps=0)
    before = diff_prune(net, batches, short, loss=mean_square)
    after = diff_prune(net, batches, replace(short, finetune_steps=100), loss=mean_square)
    assert support(before) == support(after)
    target = [0.7, 1.0, -0.8, 0.6]
    assert np.abs(after.numbers - target).max() < 0.02 < np.abs(before.numbers - target).max()


def test_each_step_is_reported():
    net, batches = planted()
    seen = []
    chosen = replace(QUICK, steps=30, finetune_steps=7)
    survivors = diff_prune(net, batches, chosen, loss=mean_square, watch=seen.append)
    assert [(s.number, s.fixed) for s in seen] == [
        *((n, False) for n in range(1, 31)),
        *((n, True) for n in range(1, 8)),
    ]
    assert seen[0].nonzero == pytest.approx(ENTRIES / (1 + np.exp(-5)), rel=1e-5)
    assert seen[29].nonzero < seen[0].nonzero and seen[29].loss < seen[0].loss
    assert seen[-1].nonzero == survivors.count


# --- what is left alone, and what is repeated ----------------------------------------------------


class WithEverything(torch.nn.Module):
    """Dropout, BatchNorm with its integer buffer, a tied pair, a frozen layer, a head."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Linear(6, 6, bias=False)
        self.norm = torch.nn.BatchNorm1d(6)
        self.frozen = torch.nn.Linear(6, 6).requires_grad_(False)
        self.drop = torch.nn.Dropout(0.3)
        self.tied = torch.nn.Linear(6, 6, bias=False)
        self.tied.weight = self.embedding.weight
        self.head = torch.nn.Linear(6, 2)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)

    def forward(self, x):
        x = self.drop(self.frozen(self.norm(self.embedding(x))))
        self.unsaved += 1
        return self.head(torch.tanh(self.tied(x)))


def everything():
    torch.manual_seed(1)
    x = torch.randn(32, 6)
    batches = [{"x": x, "y": torch.stack([x[:, 0] - x[:, 1], x[:, 2]], 1)}]
    return WithEverything(), batches


CHOSEN = DiffPruning(p=0.8, steps=20, finetune_steps=10, lr=0.02, penalty=1e-4)


def test_the_model_its_modes_and_the_generators_are_left_as_they_were():
    net, batches = everything()
    net.eval()
    net.drop.train()
    before, random = snapshot(net), torch.get_rng_state()
    diff_prune(net, batches, CHOSEN, loss=mean_square, dense=["head.weight"])
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), random) and net.unsaved == 0
    assert net.drop.training and not net.training and not net.norm.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_tied_frozen_dense_and_other_tensors_have_their_places():
    net, batches = everything()
    survivors = diff_prune(net, batches, CHOSEN, loss=mean_square, dense=["head.weight"])
    roles = {spec.name: spec.role for spec in survivors.layout}
    assert roles == {
        "embedding.weight": "pruned",
        "norm.weight": "pruned",
        "norm.bias": "pruned",
        "norm.running_mean": "dense",
        "norm.running_var": "dense",
        "norm.num_batches_tracked": "raw",
        "head.weight": "dense",
        "head.bias": "pruned",
        "scale": "pruned",
        "flag": "raw",
    }
    assert int(survivors.raw["norm.num_batches_tracked"]) == 30
    assert np.abs(survivors.dense["head.weight"]).min() > 0
    assert np.abs(survivors.dense["norm.running_mean"]).max() > 0
    assert survivors.positions["scale"].size == 0
    assert survivors.count == round(0.2 * (36 + 6 + 6 + 2 + 3))


def test_the_survivors_are_the_tuned_model():
    net, batches = everything()
    survivors = diff_prune(net, batches, CHOSEN, loss=mean_square)
    chosen = replace(CHOSEN, finetune_steps=0, steps=1, lr=1e-9)
    untrained = diff_prune(net, batches, chosen, loss=mean_square)

    def loss_with(pruned):
        call = Stateless(net.eval())
        full = {name: torch.from_numpy(values) for name, values in pruned.rescaled().items()}
        call.tensors = {
            name: tensor.detach() + full[name]
            for name, tensor in exchanged(net).items()
            if tensor.requires_grad
        }
        return float(mean_square(call, batches[0]))

    assert loss_with(survivors) < 0.9 * loss_with(untrained)


def test_the_same_seed_gives_the_same_bits_and_others_do_not():
    def run(**change):
        net, batches = everything()
        torch.manual_seed(99)  # what came before does not matter
        torch.rand(change.pop("drawn", 0))
        chosen = replace(CHOSEN, seed=change.pop("seed", 0))
        pruned = diff_prune(net, batches, chosen, loss=mean_square, **change)
        return pruned.numbers.tobytes()

    first = run()
    assert run(drawn=5) == first
    assert len({first, run(seed=1), run(round_=1), run(slot=1)}) == 4


def test_survivors_travel_in_a_packet_like_any_others():
    net, batches = everything()
    survivors = diff_prune(net, batches, CHOSEN, loss=mean_square, round_=4, slot=2)
    packet = encode(survivors, "fp32")
    again = decode(packet, survivors.layout, survivors.mask, q=1.0, values="fp32")
    assert again.numbers.tobytes() == survivors.numbers.tobytes()
    assert {n: w.tolist() for n, w in again.positions.items()} == {
        n: w.tolist() for n, w in survivors.positions.items()
    }


def test_bfloat16_learns_in_float32_and_sends_what_was_learned():
    net, batches = planted(torch.bfloat16)
    before = snapshot(net)
    survivors = diff_prune(net, batches, QUICK, loss=mean_square)
    assert {spec.dtype for spec in survivors.layout} == {"bfloat16"}
    assert support(survivors) == {name: set(entries) for name, entries in PLANTED.items()}
    np.testing.assert_allclose(survivors.numbers, [0.7, 1.0, -0.8, 0.6], atol=0.02)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    rounded = torch.from_numpy(survivors.numbers).bfloat16().float().numpy()
    assert (rounded != survivors.numbers).any()


def test_fixed_deltas_give_their_numbers_back():
    base = {"w": torch.randn(4, 5, dtype=torch.bfloat16), "head": torch.zeros(3)}
    delta = {"w": torch.rand(4, 5) / 100, "head": torch.ones(3)}
    fixed = FixedDelta(base, delta, {"w": np.array([0, 7, 19])})
    difference = (fixed.exact()["w"] - base["w"].float()).reshape(-1)
    np.testing.assert_allclose(difference[[0, 7, 19]], delta["w"].reshape(-1)[[0, 7, 19]], 1e-4)
    assert difference.count_nonzero() == 3 == fixed.count
    assert fixed.tuned()["w"].dtype == torch.bfloat16
    assert fixed.tuned()["head"].tolist() == [1, 1, 1]


# --- a model's own loss, and refusals ------------------------------------------------------------


def test_a_model_of_transformers_reports_its_own_loss():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, intermediate_size=16, **shape)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config)  # its decoder is tied to the embeddings
    ids = torch.randint(0, 20, (8, 6))
    seen = []
    chosen = DiffPruning(p=0.9, steps=15, finetune_steps=5, lr=0.01, penalty=0.0)
    survivors = diff_prune(model, [{"input_ids": ids, "labels": ids}], chosen, watch=seen.append)
    assert "bert.embeddings.word_embeddings.weight" in survivors.positions
    assert "cls.predictions.decoder.weight" not in survivors.positions
    assert seen[14].loss < seen[0].loss
    numel = sum(spec.numel for spec in survivors.layout.pruned)
    assert survivors.count == round(0.1 * numel)


def test_a_model_without_a_loss_is_refused():
    net, batches = planted()
    with pytest.raises(ValueError, match="the model returns no loss"):
        diff_prune(net, [{"x": batches[0]["x"]}], QUICK)


def test_a_model_without_trained_parameters_is_refused():
    net, batches = planted()
    with pytest.raises(ValueError, match="no trained parameter"):
        diff_prune(net.requires_grad_(False), batches, QUICK, loss=mean_square)


@pytest.mark.parametrize("count", [0, 3])
def test_batches_that_run_out_are_refused(count):
    net, batches = planted()
    with pytest.raises(ValueError, match=f"batches ended after {count}"):
        diff_prune(net, iter(batches[:count]), QUICK, loss=mean_square)


def test_a_dense_name_that_is_not_there_is_refused():
    net, batches = planted()
    with pytest.raises(DeltaError, match="dense names no such tensor"):
        diff_prune(net, batches, QUICK, loss=mean_square, dense=["haed"])


@pytest.mark.parametrize(("steps", "message"), [(5, "training diverged"), (1, "finetune_lr")])
def test_training_that_diverges_is_refused(steps, message):
    net, batches = planted()
    worse = replace(QUICK, steps=steps, finetune_steps=30, lr=1e-3, finetune_lr=1e30, penalty=0.0)
    worse = replace(worse, lr=1e30) if steps == 5 else worse
    with pytest.raises(ValueError, match=message):
        diff_prune(net, batches, worse, loss=mean_square)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"steps": 0}, "steps must be a number of at least 1, got 0"),
        ({"finetune_steps": -1}, "finetune_steps must be a number of at least 0, got -1"),
        ({"penalty": float("nan")}, "penalty must be a number of at least 0, got nan"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0.0"),
        ({"finetune_lr": -1.0}, "finetune_lr must be a number above 0, got -1.0"),
        ({"gate_lr": float("inf")}, "gate_lr must be a number above 0, got inf"),
        ({"alpha": float("inf")}, "alpha must be a finite number, got inf"),
    ],
)
def test_settings_outside_their_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)
