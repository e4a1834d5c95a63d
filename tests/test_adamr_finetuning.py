"""AdamR where people use it: in loops of their own, in Hugging Face's Trainer, in accelerate."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_adamr import Eq3, make, same, set_gradients
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from fl_darex.errors import AnchorError
from fl_darex.optim import AdamR

BODY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
HEAD = ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_tied_parameters_are_one_parameter_with_the_sum_of_their_gradients(norm):
    torch.manual_seed(0)
    embedding, output = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    output.weight = embedding.weight
    model = nn.Sequential(embedding, output).double()
    # Off the anchor by more than the steps, or l1 would stop there and Eq. 3 would not.
    anchor = [embedding.weight.detach() - 1.0]
    optimizer = AdamR(model.parameters(), lr=1e-2, delta_decay=0.01, norm=norm, anchor=anchor)
    eq3 = Eq3([embedding.weight], anchor, optimizer.param_groups)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.tensor([step, 5, 2])).square().sum().backward()
        eq3.step([embedding.weight.grad])
        optimizer.step()
        assert optimizer.last_pull[0] > 0
    assert output.weight is embedding.weight
    torch.testing.assert_close(embedding.weight.detach(), eq3.theta[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_step_of_bfloat16_parameters_is_eq3_to_three_roundings(norm):
    params = make(0, torch.bfloat16)
    anchors = [(p.detach() + torch.where(p >= 0, -1.0, 1.0)).bfloat16() for p in params]
    optimizer = AdamR(params, lr=1e-2, delta_decay=0.5, norm=norm, anchor=anchors)
    eq3 = Eq3(params, anchors, optimizer.param_groups)
    set_gradients(params, 0)
    eq3.step([p.grad for p in params])
    optimizer.step()
    for p, expected in zip(params, eq3.theta, strict=True):
        # w, the pull and the Adam step are rounded to 8 bits each, at sizes below 1 + |theta|.
        assert ((p.double() - expected).abs() <= 3 * 2**-9 * (1 + expected.abs())).all()


def test_groups_of_different_dtypes_share_one_v_bar():
    narrow, wide = make(0, torch.bfloat16)[:2], make(1, torch.float64)[:2]
    optimizer = AdamR([{"params": narrow}, {"params": wide}], lr=1e-2, delta_decay=0.5)
    for step in range(3):
        set_gradients([*narrow, *wide], step)
        optimizer.step()
    v = [optimizer.state[p]["exp_avg_sq"].double().ravel() for p in (*narrow, *wide)]
    v_bar = torch.cat(v).mean() / (1 - 0.999**3)
    # Two bfloat16 tensors hold v with 8 bits; the recursion of v_bar does not round.
    assert optimizer.last_pull == pytest.approx([1e-2 * 0.5 / v_bar.sqrt().item()] * 2, rel=2**-7)
    assert optimizer.last_pull[0] == optimizer.last_pull[1]


def test_a_closure_gives_the_bits_of_gradients_that_are_there_already():
    results = []
    for with_closure in (False, True):
        params = make(0)
        optimizer = AdamR(params, lr=1e-2, delta_decay=0.1, anchor=make(9))

        def closure(params: list = params) -> float:
            set_gradients(params, 3)
            return 7.0

        for _ in range(2):
            if with_closure:
                assert optimizer.step(closure) == 7.0
            else:
                closure()
                assert optimizer.step() is None
        results.append(params)
    assert same(*results)


def test_a_step_without_any_gradient_changes_nothing():
    params = make(0)
    optimizer = AdamR(params, delta_decay=1.0, anchor=make(9))
    optimizer.step()
    assert same(params, make(0)) and optimizer.last_pull == [0.0]
    set_gradients(params, 0)
    optimizer.step()
    set_gradients(params, 1, missing=set(range(5)))
    before = copy.deepcopy(params)
    optimizer.step()
    assert same(params, before) and optimizer.last_pull == [0.0]


def test_unscaling_then_clipping_equals_clipping_without_a_scaler():
    scaled, plain = make(0), make(0)
    runs = [AdamR(params, delta_decay=0.1, anchor=make(9)) for params in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(torch.ones(()))
    for step in range(3):
        for params, factor in ((scaled, scaler.get_scale()), (plain, 1.0)):
            set_gradients(params, step)
            torch._foreach_mul_([p.grad for p in params], factor)
        scaler.unscale_(runs[0])
        for params in (scaled, plain):
            torch.nn.utils.clip_grad_norm_(params, 0.5)
        scaler.step(runs[0])
        scaler.update()
        runs[1].step()
    assert same(scaled, plain)


def bert(seed: int = 0) -> BertForSequenceClassification:
    """A base model whose body is the same each time; a seed draws its head."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=32, intermediate_size=16, **BODY))
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    return model


def make_trainer(
    folder: Path, model: nn.Module, optimizer: AdamR, max_steps: int = 4, **options: object
) -> Trainer:
    common = {"save_steps": 2, "per_device_train_batch_size": 4, "report_to": []}
    arguments = TrainingArguments(
        str(folder), max_steps=max_steps, use_cpu=True, disable_tqdm=True, **common | options
    )
    rows = [{"input_ids": [i % 32, (7 * i) % 32, 3], "labels": i % 2} for i in range(32)]
    return Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))


def fit(folder: Path, max_steps: int, resume: bool = False, seed: int = 0) -> tuple:
    model = bert(seed)
    optimizer = AdamR.for_model(model, fresh=["classifier"], lr=1e-3, delta_decay=0.1)
    options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    trainer = make_trainer(folder, model, optimizer, max_steps, **options)
    trainer.train(resume_from_checkpoint=resume)
    return model, optimizer


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_resumes_to_the_same_bits_though_the_fresh_head_is_drawn_anew(tmp_path):
    straight, optimizer = fit(tmp_path / "a", 4)
    fit(tmp_path / "b", 2)
    # A new process builds the model from its base: the anchor is there before the checkpoint is.
    resumed, _ = fit(tmp_path / "b", 4, resume=True, seed=1)
    assert same(list(straight.parameters()), list(resumed.parameters()))
    assert optimizer.last_pull[0] > 0 == optimizer.last_pull[1]
    assert not same(list(straight.parameters()), list(bert().parameters()))


@pytest.mark.filterwarnings("ignore")
def test_a_trainers_checkpoint_holds_two_moments_and_no_anchor(tmp_path):
    model, _ = fit(tmp_path, 2)
    file = tmp_path / "checkpoint-2" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    tensors = [t for s in state["state"].values() for t in s.values() if isinstance(t, Tensor)]
    entries = sum(p.numel() for p in model.parameters())
    assert sum(t.numel() for t in tensors) == 2 * entries + len(state["state"])
    prints = [group["anchor_fingerprint"] for group in state["param_groups"]]
    assert isinstance(prints[0], str) and prints[1] is None


@pytest.mark.filterwarnings("ignore")
def test_a_model_loaded_from_the_checkpoint_needs_the_anchor_handed_over(tmp_path):
    straight, _ = fit(tmp_path / "a", 4)
    fit(tmp_path / "b", 2)
    base = bert().bert.state_dict(prefix="bert.")  # the base checkpoint: it has no head
    results = {}
    for anchor in (None, base):
        model = BertForSequenceClassification.from_pretrained(tmp_path / "b" / "checkpoint-2")
        optimizer = AdamR.for_model(
            model, fresh=["classifier"], lr=1e-3, delta_decay=0.1, anchor=anchor
        )
        options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
        trainer = make_trainer(tmp_path / "b", model, optimizer, 4, **options)
        if anchor is None:
            with pytest.raises(AnchorError, match="on the base model, before the checkpoint"):
                trainer.train(resume_from_checkpoint=True)
        else:
            trainer.train(resume_from_checkpoint=True)
            results["model"] = model
    assert same(list(straight.parameters()), list(results["model"].parameters()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"fp16": True}, {"max_grad_norm": 1e-3}, {}], ids=str
)
def test_a_trainers_flags_take_effect(tmp_path, options):
    model = bert()
    optimizer = AdamR.for_model(model, fresh=HEAD, lr=1e-3, delta_decay=1e-4)
    pulls = []
    optimizer.register_step_post_hook(lambda *_: pulls.append(optimizer.last_pull[0]))
    make_trainer(tmp_path, model, optimizer, 3, learning_rate=1e-3, **options).train()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    rates = [1e-3 * (3 - step) / 3 for step in range(3)]  # the Trainer's own schedule
    entries = sum(p.numel() for p in model.parameters())
    clipped = [1e-4 * rate * entries**0.5 / 1e-3 for rate in rates]
    if "max_grad_norm" in options:
        assert pulls == pytest.approx(clipped, rel=1e-2)
    else:
        assert all(0 < pull < other for pull, other in zip(pulls, clipped, strict=True))


def test_accelerate_wraps_it_and_loads_its_state(tmp_path):
    from accelerate import Accelerator

    wrapped, plain = bert().eval(), bert().eval()
    optimizers = [
        AdamR.for_model(m, fresh=HEAD, lr=1e-3, delta_decay=0.1) for m in (wrapped, plain)
    ]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, ours = accelerator.prepare(wrapped, optimizers[0])
    batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            ours.step()
            ours.zero_grad()
    for _ in range(2):
        for _ in range(2):
            (plain(**batch).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[1].step()
        optimizers[1].zero_grad()
    assert ours.optimizer.last_pull[0] > 0
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    for m, optimizer in ((model, ours), (plain, optimizers[1])):
        m(**batch).loss.backward()
        optimizer.step()
    assert same(list(wrapped.parameters()), list(plain.parameters()))


def names_of(optimizer: AdamR) -> list[list[str]]:
    return [group["param_names"] for group in optimizer.param_groups]


@pytest.mark.parametrize("fresh", [["classifier"], HEAD, ["classifier", "classifier.bias"]])
def test_for_model_leaves_fresh_parts_without_a_pull_and_frozen_ones_out(fresh):
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    optimizer = AdamR.for_model(model, fresh=fresh, delta_decay=0.3, norm="l1")
    trained = [n for n, p in model.named_parameters() if p.requires_grad and n not in HEAD]
    assert names_of(optimizer) == [trained, HEAD]
    assert [g["delta_decay"] for g in optimizer.param_groups] == [0.3, 0.0]
    assert all(g["norm"] == "l1" for g in optimizer.param_groups)


def test_for_model_with_nothing_fresh_or_all_fresh_has_one_group():
    model = nn.Linear(3, 2)
    assert names_of(AdamR.for_model(model)) == [["weight", "bias"]]
    one = AdamR.for_model(model, fresh=["weight", "bias"])
    assert names_of(one) == [["weight", "bias"]] and one.param_groups[0]["delta_decay"] == 0


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("message", "model", "fresh"),
    [
        ("no trained parameter: 'clasifier'; did you mean 'classifier", bert, ["clasifier"]),
        ("no trained parameter: 'lassifier'", bert, ["lassifier"]),
        ("a list of names, got the text 'classifier'", bert, "classifier"),
        ("nothing is trained", lambda: frozen(bert()), []),
    ],
)
def test_for_model_refuses_what_it_cannot_find(message: str, model: Callable, fresh: object):
    with pytest.raises(ValueError, match=message):
        AdamR.for_model(model(), fresh=fresh)
