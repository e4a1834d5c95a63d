"""Massive activations and outlier features, planted in tiny random transformers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fl_darex.activations import layer_inputs
from fl_darex.analysis.outliers import (
    Peaks,
    ablate_dimension,
    ablations,
    contributions,
    massive_dimensions,
    norm_peaks,
    outlier_features,
    output_sizes,
    residual_readers,
)
from fl_darex.analysis.outliers.outputs import EDGES, Sizes

WIDTH, PLANTED, VALUE, FIRST = 16, 5, 500.0, 7
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = {**COMMON, "intermediate_size": 24, "vocab_size": 40, "num_key_value_heads": 1}
ENCODER = {**COMMON, "intermediate_size": 24, "vocab_size": 40, "max_position_embeddings": 16}
VISION = {**COMMON, "intermediate_size": 24, "image_size": 16, "patch_size": 8}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**ENCODER)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**VISION)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8)),
}
POST_NORM = ("bert", "roberta")


def make(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[kind]().eval()


def batches_for(kind, examples=(2, 3)):
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return [{"pixel_values": torch.randn(n, 3, 16, 16, generator=generator)} for n in examples]
    found = []
    for size in examples:
        ids = torch.randint(10, 40, (size, 6), generator=generator)
        ids[:, 0] = FIRST
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def plant(kind, model):
    """Make the first token massive in one dimension, as real models of this kind do."""
    with torch.no_grad():
        if kind == "vit":
            model.vit.embeddings.position_embeddings[0, 0, PLANTED] = VALUE
        elif kind in POST_NORM:  # the stream is what a norm gives out: its scale is large
            for name, parameter in model.named_parameters():
                if name.endswith("LayerNorm.weight"):
                    parameter[PLANTED] = 5000.0
        else:
            model.model.embed_tokens.weight[FIRST, PLANTED] = VALUE
    return model


# --- massive activations --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in POST_NORM])
def test_a_planted_massive_activation_is_found_before_each_norm_with_its_token(kind):
    found = norm_peaks(plant(kind, make(kind)), batches_for(kind))
    assert len(found) == 5  # two per layer, and the last
    assert massive_dimensions(found) == {PLANTED: list(found)}
    for norm in found.values():
        (peak,) = norm.before.massive()
        assert (peak.dimension, peak.token) == (PLANTED, 0)
        assert peak.value == pytest.approx(VALUE, abs=5)
        # The norm divides by the root mean square, so at most sqrt(width) is left of it.
        after = norm.after[PLANTED]
        assert after.token == 0 and 3 < after.value <= math.sqrt(WIDTH) + 1e-5
        assert norm.after.massive() == []
        assert norm.scale.tolist() == [1.0] * WIDTH


@pytest.mark.parametrize("kind", POST_NORM)
def test_a_planted_scale_is_found_after_each_norm_of_a_model_that_normalises_last(kind):
    model = make(kind)
    assert not any(norm.after.massive() for norm in norm_peaks(model, batches_for(kind)).values())
    found = norm_peaks(plant(kind, model), batches_for(kind))
    assert len(found) == 5
    for norm in found.values():
        assert [peak.dimension for peak in norm.after.massive()] == [PLANTED]
        assert norm.scale[PLANTED] == 5000.0
    assert set(massive_dimensions(found)) == {PLANTED}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_without_massive_activations_has_none(kind):
    assert massive_dimensions(norm_peaks(make(kind), batches_for(kind))) == {}


@pytest.mark.parametrize("kind", MODELS)
def test_peaks_are_the_maxima_of_what_hooks_see_and_padding_does_not_count(kind):
    model, batches = plant(kind, make(kind)), batches_for(kind)
    name = list(norm_peaks(model, batches))[1]
    seen = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    found = norm_peaks(model, batches)[name]
    for peaks, index in ((found.before, 0), (found.after, 1)):
        examples = [state for pair in seen for state in pair[index]]
        masks = [torch.ones(5)] * 5  # four patches and [CLS]
        if kind != "vit":
            masks = [mask for batch in batches for mask in batch["attention_mask"]]
        for dimension in range(WIDTH):
            peak = peaks[dimension]
            mask, rows = masks[peak.example].bool(), examples[peak.example]
            assert peak.value == pytest.approx(float(rows[peak.token, dimension]))
            assert peak.median == pytest.approx(float(rows[mask].abs().median()))
            kept = [e[m.bool()] for e, m in zip(examples, masks, strict=True)]
            assert abs(peak.value) == float(torch.cat(kept)[:, dimension].abs().max())


def test_a_norm_that_layers_share_counts_its_examples_once():
    settings_ = {**ENCODER, "embedding_size": 8, "num_hidden_layers": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AlbertModel(AlbertConfig(**settings_))
    found = norm_peaks(model, batches_for("bert"))
    assert len(found) == 2  # the embeddings' has another width
    assert max(int(norm.after.example.max()) for norm in found.values()) <= 4


def test_peaks_are_sorted_by_magnitude_and_judged_by_size_and_median():
    value, median = np.array([-300.0, 101.0, 99.0, 200.0]), np.array([0.2, 0.1, 1e-9, 0.5])
    peaks = Peaks(value, np.arange(4), np.zeros(4, np.int64), median)
    assert [peak.dimension for peak in peaks.largest(2)] == [0, 3]
    assert [peak.dimension for peak in peaks.massive()] == [0, 1]
    assert [peak.dimension for peak in peaks.massive(magnitude=50, ratio=100)] == [0, 3, 1, 2]


def test_a_real_encoder_is_massive_at_its_first_token_until_the_norm_makes_it_small(minilm):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(minilm) for kind in (AutoModel, AutoTokenizer))
    texts = ["a great film", "the plot is not very good, and the end is boring"]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    norm = norm_peaks(model.float(), [batch])["encoder.layer.0.output.LayerNorm"]
    peak = norm.before.largest(1)[0]
    assert (peak.dimension, peak.token) == (99, 0)  # [CLS]
    assert peak.value > 100 and peak.value > 300 * peak.median
    assert norm.after[99].value < 10 and norm.scale[99] < norm.scale.mean()


# --- who reads the residual stream ----------------------------------------------------------------


def test_the_readers_of_llama_are_attention_and_mlp_inputs_and_the_head():
    readers = residual_readers(make("llama"), batches_for("llama")[0])
    inside = [reader for reader in readers if reader.block]
    assert {r.weight.removeprefix(f"{r.block}.") for r in inside} == {
        f"{part}_proj.weight"
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
    }
    assert len(inside) == 10
    assert {r.norm for r in inside if "mlp" in r.weight} == {
        f"model.layers.{i}.post_attention_layernorm" for i in (0, 1)
    }
    assert [r.weight for r in readers if not r.block] == ["lm_head.weight"]


@pytest.mark.parametrize("kind", POST_NORM)
def test_the_readers_of_bert_are_attention_and_mlp_inputs_and_the_pooler_or_head(kind):
    readers = residual_readers(make(kind), batches_for(kind)[0])
    inside = {r.weight.removeprefix(f"{r.block}.") for r in readers if r.block}
    query = [f"attention.self.{part}.weight" for part in ("query", "key", "value")]
    assert inside == {*query, "intermediate.dense.weight"}
    outside = "bert.pooler.dense.weight" if kind == "bert" else "classifier.dense.weight"
    assert [r.weight for r in readers if not r.block] == [outside]


@pytest.mark.parametrize(("kind", "inside"), [("vit", 8), ("qwen2", 10), ("qwen3", 10)])
def test_other_models_have_their_readers_too(kind, inside):
    readers = residual_readers(make(kind), batches_for(kind)[0])
    assert sum(bool(reader.block) for reader in readers) == inside
    assert len(readers) == inside + 1
    assert not [r for r in readers if "o_proj" in r.weight or "down_proj" in r.weight]


def test_a_model_without_layer_norms_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match=r"Sequential has no torch\.nn\.Linear that reads"):
        residual_readers(model, {"x": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="Sequential has no layer norm"):
        norm_peaks(model, [{"x": torch.ones(1, 3)}])


# --- outlier features -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_dimension_with_a_large_scale_is_an_outlier_feature(kind):
    model = make(kind)
    before = outlier_features(model, batches_for(kind))
    assert before.dimensions() == []
    for reader in residual_readers(model, batches_for(kind)[0]):
        with torch.no_grad():
            model.get_submodule(reader.norm).weight[3] = 40.0
    found = outlier_features(model, batches_for(kind))
    assert found.dimensions() == [3]
    assert found.layers[3] == 1.0 and 0.5 < found.tokens[3] <= 1.0 and found.peak[3] > 20
    assert found.peak[np.arange(WIDTH) != 3].max() < 6


def test_shares_of_layers_and_tokens_are_counted_without_padding():
    model, batches = make("llama"), batches_for("llama")
    states = {name: [] for name in (f"model.layers.{i}" for i in (0, 1))}
    names = ("input_layernorm", "post_attention_layernorm")
    handles = [
        model.get_submodule(f"{block}.{name}").register_forward_hook(
            lambda m, i, o, block=block: states[block].append(o)
        )
        for block in states
        for name in names
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    found = outlier_features(model, batches, magnitude=1.5)
    masks = [batch["attention_mask"].bool() for batch in batches for _ in names]
    rows = {
        block: torch.cat([o[m] for o, m in zip(seen, masks, strict=True)]).abs() >= 1.5
        for block, seen in states.items()
    }
    layers = torch.stack([large.any(0) for large in rows.values()]).double().mean(0)
    tokens = torch.cat(list(rows.values())).double().mean(0)
    assert len(torch.cat(list(rows.values()))) == 2 * 2 * (5 * 6 - 2 * 2)
    np.testing.assert_allclose(found.layers, layers)
    np.testing.assert_allclose(found.tokens, tokens)
    assert found.dimensions(0.75, 0.1) == sorted(
        (d for d in range(WIDTH) if layers[d] >= 0.75 and tokens[d] >= 0.1),
        key=lambda d: (-tokens[d], d),
    )


def test_contributions_are_mean_and_variance_of_each_product():
    torch.manual_seed(2)
    net = torch.nn.Linear(4, 3)
    x, delta = torch.randn(20, 4) * torch.tensor([1.0, 30.0, 1.0, 1.0]) + 2, torch.randn(3, 4)
    net.forward = lambda x: torch.nn.Linear.forward(net, x)
    wrapped = torch.nn.ModuleDict({"layer": net})
    wrapped.forward = lambda x: net(x)
    inputs = layer_inputs(wrapped, [{"x": x[:5]}, {"x": x[5:]}])
    found = contributions({"layer.weight": delta, "other": delta}, inputs)["layer.weight"]
    products = (delta[:, None, :] * x[None]).reshape(-1, 4).double().numpy()
    np.testing.assert_allclose(found.mean, products.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance, products.var(0), rtol=1e-5)


# --- what deltas add ------------------------------------------------------------------------------


def tuned_and_base(kind, size=0.01):
    model = make(kind)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model, base


@pytest.mark.parametrize("kind", MODELS)
def test_output_sizes_are_those_of_delta_times_x_and_w_times_x(kind):
    model, base = tuned_and_base(kind)
    batches = batches_for(kind)
    name = next(r.weight for r in residual_readers(model, batches[0]) if r.block)
    seen = []
    module = model.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    rows = [x[b["attention_mask"].bool()] if kind != "vit" else x.flatten(0, 1)
            for x, b in zip(seen, batches, strict=True)]  # fmt: skip
    x = torch.cat(rows).double()
    found = output_sizes(model, base, batches)[name]
    weight = module.weight.detach().double()
    delta = (x @ (weight - base[name].double()).T).abs()
    full = (x @ weight.T).abs()
    assert found.delta.mean == pytest.approx(float(delta.mean()), rel=1e-4)
    assert found.tuned.mean == pytest.approx(float(full.mean()), rel=1e-4)
    assert found.ratio == pytest.approx(float(delta.mean() / full.mean()), rel=1e-4)
    assert found.delta.counts.sum() == delta.numel()
    assert 1 <= found.tuned.quantile(0.5) / float(full.median()) * 1.05 < 1.4


def test_equal_models_add_nothing():
    model, base = tuned_and_base("bert", size=0.0)
    for sizes in output_sizes(model, base, batches_for("bert")).values():
        assert sizes.delta.mean == 0 == sizes.ratio
        assert sizes.delta.counts[0] == sizes.delta.counts.sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-11, 1e5), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_of_a_histogram_is_at_most_a_bin_above_the_exact_one(values, share):
    counts, _ = np.histogram(values, EDGES)
    exact = np.sort(values)[max(0, math.ceil(share * len(values)) - 1)]
    found = Sizes(counts, 0.0).quantile(share)
    assert exact * (1 - 1e-9) <= found <= exact * 10**0.1 * (1 + 1e-9)


def test_base_weights_of_another_model_are_refused():
    model, base = tuned_and_base("bert")
    with pytest.raises(ValueError, match="base holds no linear weight of this model"):
        output_sizes(model, {}, batches_for("bert"))
    name = "bert.pooler.dense.weight"
    with pytest.raises(ValueError, match=r"has shape \(16, 16\), its base \(2, 2\)"):
        output_sizes(model, base | {name: torch.zeros(2, 2)}, batches_for("bert"))
    with pytest.raises(ValueError, match="share must be above 0, to 1, got 0"):
        Sizes(np.ones(len(EDGES) - 1, np.int64), 1.0).quantile(0)


# --- without a dimension's deltas (Table 14) ------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_ablation_puts_one_column_of_each_reader_back_and_then_every_bit(kind):
    model, base = tuned_and_base(kind)
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [r.weight for r in residual_readers(model, batches_for(kind)[0]) if r.block]
    with pytest.raises(KeyboardInterrupt), ablate_dimension(model, base, 5, names) as changed:
        for name, tensor in model.state_dict().items():
            expected = tuned[name].clone()
            if name in names:
                expected[:, 5] = base[name][:, 5]
            assert torch.equal(tensor, expected)
        assert changed == sum(len(base[name]) for name in names)
        raise KeyboardInterrupt
    assert all(torch.equal(t, tuned[name]) for name, t in model.state_dict().items())


def test_the_planted_dimension_is_worth_most():
    model, base = tuned_and_base("llama", size=0.002)
    plant("llama", model)
    batches = batches_for("llama")
    names = [r.weight for r in residual_readers(model, batches[0]) if r.block]

    def logits():
        with torch.no_grad():
            return torch.cat([model(**batch).logits for batch in batches])

    full = logits()
    table = ablations(
        model, base, range(WIDTH), names, lambda: float((logits() - full).square().sum())
    )
    assert table.pop(None) == 0.0
    assert max(table, key=table.get) == PLANTED
    assert torch.equal(logits(), full)


def test_ablations_that_make_no_sense_are_refused_and_change_nothing():
    model, base = tuned_and_base("bert")
    name = "bert.pooler.dense.weight"
    for arguments, message in [
        ((base, 16, [name]), "dimension = 16: .* has 16 inputs; allowed: 0 to 15"),
        ((base, -1, [name]), "dimension = -1"),
        ((base, 0, [name, "x"]), "the model has no weight 'x'"),
        (({}, 0, [name]), "the base has no weight"),
        ((base, 0, ["bert.pooler.dense.bias"]), r"has shape \(16,\)"),
    ]:
        before = model.state_dict()[name].clone()
        with pytest.raises(ValueError, match=message), ablate_dimension(model, *arguments):
            pass
        assert torch.equal(model.state_dict()[name], before)


# --- for all --------------------------------------------------------------------------------------


@pytest.mark.parametrize("analysis", [norm_peaks, outlier_features])
def test_no_hook_stays_modes_come_back_and_no_batch_is_refused(analysis):
    model = make("bert").train()
    model.bert.pooler.train(False)
    analysis(model, iter(batches_for("bert")))
    with pytest.raises(IndexError, match="out of range"):
        analysis(model, [{"input_ids": torch.full((1, 3), 4000)}])
    assert model.training and not model.bert.pooler.training
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    with pytest.raises(ValueError, match="no batches were given"):
        analysis(model, [])


def test_a_magnitude_of_nothing_is_refused():
    with pytest.raises(ValueError, match="magnitude must be above 0, got 0"):
        outlier_features(make("bert"), batches_for("bert"), magnitude=0)


def test_plots_are_written(tmp_path):
    plots = pytest.importorskip("fl_darex.analysis.outlier_figures")
    model, base = tuned_and_base("llama")
    peaks = norm_peaks(plant("llama", model), batches_for("llama"))
    sizes = output_sizes(model, base, batches_for("llama"))
    for path in (
        plots.plot_peaks(peaks, tmp_path / "peaks.png"),
        plots.plot_output_sizes(sizes, tmp_path / "sizes.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
