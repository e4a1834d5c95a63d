"""AdamR against a plain transcription of Eq. 3, and against what users wrap around an optimizer."""

import copy
import importlib
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fl_darex.errors import AnchorError
from fl_darex.optim import AdamR

SHAPES = [(3, 4), (5,), (), (0, 2), (2, 3)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]


def make(seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    return [nn.Parameter(v.to(device, dtype)) for v in values]


def set_gradients(params: list[nn.Parameter], step: int, missing: set[int] = frozenset()) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = None if i in missing else g.to(p.device, p.dtype)


def same(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def two_groups(params: list[nn.Parameter], **options: object) -> list[dict]:
    one = {"params": params[:2], "lr": 1e-2, "delta_decay": 0.3, "betas": (0.9, 0.999)}
    two = {"params": params[2:], "lr": 3e-3, "delta_decay": 0.05, "betas": (0.8, 0.95)}
    return [one | options, two | options]


class Eq3:
    """The paper's Eq. 3, element by element, in float64 and with every v at hand."""

    def __init__(self, params: list[Tensor], anchors: list[Tensor], groups: list[dict]) -> None:
        self.theta = [p.detach().double().clone() for p in params]
        self.anchor = [a.detach().double() for a in anchors]
        self.options = [group for group in groups for _ in group["params"]]
        self.m = [torch.zeros_like(t) for t in self.theta]
        self.v = [torch.zeros_like(t) for t in self.theta]
        self.t = [0] * len(params)

    def step(self, gradients: list[Tensor | None], eps: float = 1e-8) -> None:
        moving = [i for i, g in enumerate(gradients) if g is not None]
        m_hat, v_hat = {}, {}
        for i in moving:
            (b1, b2), g = self.options[i]["betas"], gradients[i].double()
            self.t[i] += 1
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
            m_hat[i] = self.m[i] / (1 - b1 ** self.t[i])
            v_hat[i] = self.v[i] / (1 - b2 ** self.t[i])
        v_bar = torch.cat([v_hat[i].flatten() for i in moving]).mean()
        for i in moving:
            lr, decay = self.options[i]["lr"], self.options[i]["delta_decay"]
            delta = self.theta[i] - self.anchor[i]
            pull = delta if self.options[i]["norm"] == "l2" else delta.sign()
            adam = lr * m_hat[i] / (v_hat[i].sqrt() + eps)
            self.theta[i] = self.theta[i] - adam - lr * decay * pull / (v_bar.sqrt() + eps)


def worst_difference_from_eq3(norm: str, dtype: torch.dtype, device: str = "cpu") -> float:
    params = make(0, dtype, device)
    # 1 away from the anchor: too far to reach it, so that l1 never meets its stop.
    anchors = [p.detach() + torch.where(p >= 0, -1.0, 1.0).to(dtype) for p in params]
    groups = two_groups(params, norm=norm)
    reference = Eq3(params, anchors, groups)
    optimizer = AdamR(groups, anchor=anchors)
    for step in range(10):
        set_gradients(params, step, missing={1} if step in (0, 4, 5) else {3} if step == 7 else {4})
        reference.step([p.grad for p in params])
        optimizer.step()
        assert 0 < max(optimizer.last_pull) < 1
    pairs = zip(params, reference.theta, strict=True)
    return max((p.double() - t).abs().max().item() for p, t in pairs if p.numel())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_steps_equal_eq3_with_groups_and_missing_gradients_to_float64_round_off(norm, device):
    # 10 steps, at most 4 roundings each of values below 4.
    assert worst_difference_from_eq3(norm, torch.float64, device) <= 10 * 4 * 4 * 2**-53


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_steps_equal_eq3_in_float32_to_its_round_off(norm, device):
    # As above, and 10 Adam steps of about lr = 0.01 with a relative error below 64 roundings.
    bound = (10 * 4 * 4 + 10 * 0.01 * 64) * 2**-24
    assert worst_difference_from_eq3(norm, torch.float32, device) <= bound


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4), max_size=4), min_size=1, max_size=6),
    st.floats(0.0, 0.9999),
    st.floats(-6, 6),
)
def test_the_recursion_of_v_bar_equals_the_mean_of_v(missing, beta2, exponent):
    params = make(1)
    optimizer = AdamR(params, betas=(0.9, beta2), eps=1e-8, delta_decay=1.0)
    for step, absent in enumerate(missing):
        set_gradients(params, step, absent)
        for p in params:
            p.grad = None if p.grad is None else p.grad * 10**exponent
        optimizer.step()
        v = [optimizer.state[p] for i, p in enumerate(params) if i not in absent]
        v_hat = torch.cat([(s["exp_avg_sq"] / (1 - beta2 ** s["step"].item())).ravel() for s in v])
        v_bar = v_hat.mean() if v_hat.numel() else torch.zeros(())
        assert optimizer.last_pull == pytest.approx([1e-3 / (v_bar.sqrt().item() + 1e-8)], rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(-100, 100), st.sampled_from(["l2", "l1"]), st.floats(0, 1))
def test_an_update_depends_only_on_the_distance_from_the_anchor(shift, norm, delta_decay):
    here, there = make(2), make(2)
    with torch.no_grad():
        torch._foreach_add_(there, shift)
    anchor = [p.detach().clone() for p in make(3)]
    one = AdamR(here, delta_decay=delta_decay, norm=norm, anchor=anchor)
    two = AdamR(there, delta_decay=delta_decay, norm=norm, anchor=[a + shift for a in anchor])
    for step in range(3):
        set_gradients(here, step)
        set_gradients(there, step)
        one.step()
        two.step()
    for p, q in zip(here, there, strict=True):
        torch.testing.assert_close(q - shift, p, rtol=0, atol=30 * 2**-53 * (5 + abs(shift)))


def test_v_bar_is_exact_for_a_large_float32_parameter():
    p = nn.Parameter(torch.zeros(4_000_000))
    p.grad = torch.full_like(p, 0.1)
    optimizer = AdamR([p], lr=1.0, delta_decay=0.01, eps=0.0)
    optimizer.step()
    assert optimizer.last_pull == pytest.approx([0.1], rel=1e-6)


@pytest.mark.parametrize("shape", [(1100, 300), (600_001,), (64, 3, 40, 50)])
def test_l1_moves_every_entry_of_a_large_parameter_by_w_or_to_the_anchor(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(start.clone())
    if p.dim() == 4:
        p.data = p.data.to(memory_format=torch.channels_last)
    optimizer = AdamR([p], lr=0.0, delta_decay=1.0, norm="l1", anchor=[torch.zeros(shape)])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(p, start)
    optimizer.param_groups[0].update(lr=1e-12, delta_decay=2.5e11)
    optimizer.step()
    expected = torch.where(start.abs() <= 0.25, 0.0, start - 0.25 * start.sign())
    torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-7, check_stride=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_decay_the_bits_are_those_of_fused_adam(dtype):
    ours, theirs = make(0, dtype), make(0, dtype)
    adamr = AdamR(ours, lr=1e-2, delta_decay=0.0, anchor=make(9))
    adamw = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        adamr.step()
        adamw.step()
    assert same(ours, theirs)
    assert adamr.last_pull == [0.0]


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pull_too_strong_lands_on_the_anchor_before_the_adam_step(norm, dtype):
    ours, theirs = make(0, dtype), make(9, dtype)
    adamr = AdamR(ours, lr=1e-2, delta_decay=1e6, norm=norm, anchor=theirs)
    adamw = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, fused=True)
    set_gradients(ours, 0)
    set_gradients(theirs, 0)
    adamr.step()
    adamw.step()
    assert same(ours, theirs)
    assert adamr.last_pull[0] > 1


def test_gradients_that_are_all_zero_pull_back_to_the_anchor():
    params, anchor = make(0), make(9)
    optimizer = AdamR(params, anchor=anchor)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert same(params, anchor)


def test_frozen_parameters_do_not_move():
    params = make(0)
    params[1].requires_grad_(False)
    before = params[1].clone()
    optimizer = AdamR(params, delta_decay=1.0, anchor=make(9))
    for _ in range(3):
        optimizer.zero_grad()
        sum((p**2).sum() for p in params).backward()
        optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state


def test_an_anchor_by_name_equals_an_anchor_in_order_whatever_the_groups():
    by_name, in_order = nn.Linear(3, 2), nn.Linear(3, 2)
    in_order.load_state_dict(by_name.state_dict())
    goal = nn.Linear(3, 2).state_dict()
    named = dict(by_name.named_parameters())
    groups = [{"params": [(n, named[n])], "delta_decay": 0.5} for n in ("bias", "weight")]
    optimizers = [
        AdamR(groups, anchor=goal | {"unused": torch.ones(7)}),
        AdamR(in_order.parameters(), delta_decay=0.5, anchor=(goal[n] for n in named)),
    ]
    for model, optimizer in zip((by_name, in_order), optimizers, strict=True):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert same(list(by_name.parameters()), list(in_order.parameters()))


def test_the_anchor_is_a_copy():
    params = make(0)
    start = [p.detach().clone() for p in params]
    optimizer = AdamR(params, lr=0.0, delta_decay=1.0, anchor=params)
    with torch.no_grad():
        torch._foreach_add_(params, 1.0)
    optimizer.param_groups[0]["lr"] = 1e-12
    optimizer.param_groups[0]["delta_decay"] = 1e20
    set_gradients(params, 0)
    optimizer.step()
    for p, s in zip(params, start, strict=True):
        torch.testing.assert_close(p, s, rtol=0, atol=1e-11)


def test_the_anchor_follows_the_dtype_of_its_parameter():
    model = nn.Linear(3, 2)
    optimizer = AdamR(model.parameters(), delta_decay=0.1)
    model.double()
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert model.weight.dtype == torch.float64


def test_a_group_added_later_starts_from_its_own_anchor():
    params, goal = make(0), make(9)[1:3]
    group = {"params": params[1:3], "delta_decay": 1e6, "anchor": goal}
    optimizer = AdamR(params[:1], delta_decay=0.0)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.add_param_group(group)
    optimizer.add_param_group({"params": params[3:], "norm": "l1", "delta_decay": 0.1})
    assert "anchor" in group and "anchor" not in optimizer.param_groups[1]
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    assert [pull > 0 for pull in optimizer.last_pull] == [False, True, True]
    # On the goal, then the first Adam step of a parameter: lr against the gradient.
    for p, g in zip(params[1:3], goal, strict=True):
        torch.testing.assert_close(p, g - 1e-3, rtol=0, atol=2e-8)
    with pytest.raises(AnchorError, match="has 1 tensors for 2"):
        extra = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer.add_param_group({"params": extra, "anchor": [torch.zeros(1)]})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carry", ["state_dict", "deepcopy", "pickle"])
def test_a_stopped_and_continued_run_gives_the_same_bits(dtype, carry, tmp_path):
    params, anchor = make(0, dtype), make(9)
    optimizer = AdamR(two_groups(params), anchor=anchor)
    for step in range(4):
        set_gradients(params, step, missing={step, 4} if step else set())
        optimizer.step()
    if carry == "state_dict":
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin = AdamR(two_groups(twins), anchor=anchor)
        twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    elif carry == "deepcopy":
        twins, twin = copy.deepcopy((params, optimizer))
    else:
        twins, twin = pickle.loads(pickle.dumps((params, optimizer)))
    for step in range(4, 8):
        for side, run in ((params, optimizer), (twins, twin)):
            set_gradients(side, step)
            run.step()
        assert twin.last_pull == optimizer.last_pull
    assert same(params, twins)


def test_a_state_holds_a_fingerprint_and_no_anchor():
    params = make(0)
    optimizer = AdamR(params, anchor=make(9))
    set_gradients(params, 0)
    before = optimizer.state_dict()["param_groups"][0]["anchor_fingerprint"]
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["anchor_fingerprint"] == before
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "square_sum"}
    assert "anchor" not in state["param_groups"][0]
    assert "square_sum" not in optimizer.state[params[0]]


@pytest.mark.parametrize("saver", ["another anchor", "another order", "AdamW"])
def test_a_state_with_another_anchor_is_refused_and_nothing_is_loaded(saver):
    anchors = {"another anchor": make(8), "another order": make(9)[::-1]}
    if saver == "AdamW":
        state = torch.optim.AdamW(make(0)).state_dict()
    else:
        params = make(0) if saver == "another anchor" else make(0)[::-1]
        state = AdamR(params, anchor=anchors[saver]).state_dict()
    state["param_groups"][0]["lr"] = 0.25
    optimizer = AdamR(make(0), lr=0.5, anchor=make(9))
    with pytest.raises(AnchorError, match="anchor of the saved run"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_grad_scaler_unscales_first_and_a_skipped_step_changes_nothing():
    scaled, plain = make(0), make(0)
    runs = [AdamR(params, delta_decay=0.1, anchor=make(9)) for params in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        for params, factor in ((scaled, scaler.scale(torch.ones(()))), (plain, 1.0)):
            set_gradients(params, step)
            for p in params:
                p.grad *= factor
        scaler.step(runs[0])
        scaler.update()
        runs[1].step()
    assert same(scaled, plain)
    before = copy.deepcopy(runs[0].state_dict())
    for p in scaled:
        p.grad = torch.full_like(p, torch.inf)
    scaler.step(runs[0])
    scaler.update()
    assert same(scaled, plain)
    after = runs[0].state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert after["param_groups"] == before["param_groups"]
    assert runs[0].last_pull == runs[1].last_pull


def test_a_schedule_and_a_tensor_learning_rate_scale_the_pull():
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1]).double()):
        params = make(0)
        optimizer = AdamR(params, lr=lr, delta_decay=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        pulls = []
        for _ in range(3):
            set_gradients(params, 0)
            optimizer.step()
            schedule.step()
            pulls += optimizer.last_pull
        assert pulls == pytest.approx([pulls[0], pulls[0] / 2, pulls[0] / 4], rel=1e-12)


def test_accumulated_gradients_equal_the_big_batch():
    batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = nn.Linear(3, 2).double()
    parts = copy.deepcopy(whole)
    for model, size in ((whole, 8), (parts, 2)):
        optimizer = AdamR(
            model.parameters(), delta_decay=0.1, anchor=[torch.ones(2, 3), batch[0, :2]]
        )
        for _ in range(3):
            optimizer.zero_grad()
            for piece in batch.split(size):
                (model(piece).square().mean() * size / 8).backward()
            optimizer.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_with_clipped_gradients_v_bar_is_about_one_over_the_number_of_elements():
    params = [nn.Parameter(torch.zeros(400)), nn.Parameter(torch.zeros(25, 8))]
    optimizer = AdamR(params, lr=1e-2, delta_decay=1.0)
    for step in range(3):
        set_gradients(params, step)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    assert optimizer.last_pull == pytest.approx([1e-2 * 600**0.5], rel=1e-5)


def test_a_closure_and_bf16_autocast_run_and_the_loss_comes_back():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    optimizer = AdamR(model.parameters(), lr=1e-2, delta_decay=0.01)
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(inputs) - inputs[:, :1]).float().square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_step_hooks_run_once_even_where_adamw_was_used_before_the_import(monkeypatch):
    torch.optim.AdamW(make(0))
    monkeypatch.delitem(sys.modules, "fl_darex.optim.adamr")
    optimizer, calls = importlib.import_module("fl_darex.optim.adamr").AdamR(make(0)), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert calls == [1]


def test_a_sparse_gradient_is_refused_before_anything_changes():
    dense, embedding = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    optimizer = AdamR([dense, embedding.weight])
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2)) and not optimizer.state


def test_a_replaced_parameter_is_refused():
    params = make(0)
    optimizer = AdamR(params)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(2))
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    with pytest.raises(AnchorError, match=r"parameter \(2,\) is new"):
        optimizer.step()


W, B = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
NAMED = [("weight", W), ("bias", B)]
BAD = [
    (ValueError, "delta_decay must be finite and at least 0, got -1", [W], {"delta_decay": -1.0}),
    (ValueError, "delta_decay .* got nan", [W], {"delta_decay": float("nan")}),
    (ValueError, "norm must be 'l2' or 'l1', got 'L2'", [W], {"norm": "L2"}),
    (ValueError, "norm must be", [{"params": [W], "norm": 2}], {}),
    (ValueError, "learning rate: -1", [W], {"lr": -1.0}),
    (ValueError, "beta parameter at index 1: 1", [W], {"betas": (0.9, 1.0)}),
    (ValueError, "epsilon value: -1", [W], {"eps": -1.0}),
    (ValueError, "empty parameter list", [], {}),
    (ValueError, "AdamR has no weight_decay, got 0.1", [{"params": [W], "weight_decay": 0.1}], {}),
    (ValueError, "AdamR has no amsgrad", [{"params": [W], "amsgrad": True}], {}),
    (ValueError, "AdamR has no maximize", [{"params": [W], "maximize": True}], {}),
    (ValueError, "both to AdamR and in a group", [{"params": [W], "anchor": [W]}], {"anchor": [W]}),
    (TypeError, "real floating-point numbers, got torch.complex64", [W.detach() * 1j], {}),
    (TypeError, "iterable of Tensors or dicts", W, {}),
    (TypeError, "tensors or a mapping, got Tensor", [W], {"anchor": torch.zeros(1, 2, 3)}),
    (TypeError, "tensors or a mapping, got Linear", [W], {"anchor": nn.Linear(3, 2)}),
    (TypeError, "parameter 0 must be a floating-point tensor", [W], {"anchor": NAMED[:1]}),
    (TypeError, "parameter 0 must be", [W], {"anchor": [torch.zeros(2, 3, dtype=torch.long)]}),
    (AnchorError, "1 tensors for 2 parameters", [W, B], {"anchor": [torch.zeros(2, 3)]}),
    (AnchorError, r"anchor 0 has shape \[3, 2\], not \[2, 3\]", [W], {"anchor": [W.T]}),
    (AnchorError, "needs named parameters", [W], {"anchor": {"weight": W}}),
    (AnchorError, "lacks 'bias'; did you mean 'bia'", NAMED, {"anchor": {"weight": W, "bia": B}}),
]


@pytest.mark.parametrize(("error", "message", "params", "options"), BAD)
def test_a_bad_argument_is_refused_with_its_value(error, message, params, options):
    with pytest.raises(error, match=message):
        AdamR(params, **options)


def test_a_parameter_that_is_listed_twice_is_refused():
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match="twice"):
        AdamR([W, W])


@pytest.mark.skipif("not torch.cuda.is_available()")
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_step_on_a_gpu_does_not_make_the_host_wait(norm):
    params = make(0, torch.float32, "cuda")
    optimizer = AdamR(two_groups(params, norm=norm))
    set_gradients(params, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
