"""Fine-tuned models as small files, and back: the same bits as the library's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import (
    HOWS,
    TYPES,
    Tensors,
    by_the_library,
    moved,
    same,
    saved,
    there_and_back,
    weights,
)

from fl_darex import deltas
from fl_darex.change import added
from fl_darex.delta import Delta, Layout
from fl_darex.deltas import Pruning, open_checkpoint, open_delta
from fl_darex.errors import ConfigError, DarexError, DeltaError, PacketError
from fl_darex.pruning import dare
from fl_darex.rescaling import RescaledModel
from fl_darex.wire import encode
from fl_darex.wire.reader import read_packet


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.method}-{how.values}")
@pytest.mark.parametrize("kind", TYPES)
def test_what_comes_out_has_the_bits_of_the_librarys_own_arithmetic(tmp_path, kind, how):
    base = weights(0, TYPES[kind])
    tuned = moved(base)
    found, delta, out = there_and_back(tmp_path, base, tuned, how)
    packet = encode(by_the_library(base, tuned, how), how.values, base=delta.header.base)
    assert len(found.header.packets) == 1 and bytes(delta._packets[0]) == packet
    survivors = read_packet(packet, Layout.of(base)).survivors()
    model = {name: tensor.clone() for name, tensor in base.items()}
    with RescaledModel(model, survivors) as rescaled:
        rescaled.set(survivors.q)
        assert same(out, model)
    assert not same(out, base)


@pytest.mark.parametrize("how", HOWS[:1] + HOWS[-1:], ids=lambda how: how.method)
def test_numpys_arithmetic_gives_the_same(tmp_path, how):
    base = weights(0)
    tuned = moved(base)
    out = there_and_back(tmp_path, base, tuned, how)[2]
    survivors = by_the_library(base, tuned, how)
    read = read_packet(encode(survivors, how.values), Layout.of(base)).survivors()
    for name, values in read.values.items():
        change = values / np.float32(read.q)
        expected = added(base[name].numpy(), change, read.positions[name])
        assert np.array_equal(out[name].numpy(), expected)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.method}-{how.values}")
def test_many_small_packets_say_what_one_says(tmp_path, monkeypatch, how):
    base = weights(0)
    for number in range(6):
        base |= {f"e.{number}": weights(number)["b.weight"][:9]}
    tuned = {
        k: v + 0.01 * torch.cos(torch.arange(v.numel())).view(v.shape) for k, v in base.items()
    }
    (tmp_path / "one").mkdir(), (tmp_path / "many").mkdir()
    one, _, _ = there_and_back(tmp_path / "one", base, tuned, how)
    monkeypatch.setattr("fl_darex.deltas.packing.NUMBERS", 40)
    many, delta, out = there_and_back(tmp_path / "many", base, tuned, how)
    assert len(one.header.packets) == 1 and len(many.header.packets) > 2
    survivors = by_the_library(base, tuned, how)
    for row in delta.header.rows:
        positions, _ = deltas.survivors_of(delta, row)
        assert np.array_equal(positions, survivors.positions[row.name])
        assert row.kept == positions.size
    if how.values in ("fp32", "fp64"):
        assert same(out, load_file(tmp_path / "one" / "out" / "model.safetensors"))


ODD = {
    "count": torch.arange(5),
    "flags": torch.tensor([True, False]),
    "frozen": torch.randn(100, 100, generator=torch.Generator().manual_seed(3)),
    "norm.running_var": torch.tensor([0.5, 1.5, 2.5]),
    "empty": torch.empty(0, 4),
    "double": torch.tensor([1 / 3, 2 / 3], dtype=torch.float64),
    "head.weight": torch.ones(2, 6),
}


def test_each_tensor_gets_what_is_due_to_it(tmp_path):
    base = ODD | weights(0)
    tuned = moved(weights(0)) | {
        **ODD,
        "count": torch.arange(5) + 10**17,
        "norm.running_var": torch.tensor([0.25, 1.5, 3.0]),
        "double": torch.tensor([1 / 3, 5.0], dtype=torch.float64),
        "head.weight": torch.randn(3, 6),  # for three classes
        "fresh": torch.tensor([3.0, 4.0]),
    }
    del tuned["a.bias"]
    found, _, out = there_and_back(tmp_path, base, tuned, Pruning(method="dare", p=0.9))
    roles = {row.name: (row.role, row.base) for row in found.header.rows}
    assert roles == {
        "b.weight": ("pruned", "b.weight"),
        "c.conv": ("pruned", "c.conv"),
        "d": ("pruned", "d"),
        "double": ("pruned", "double"),
        "count": ("raw", None),
        "flags": ("same", "flags"),
        "frozen": ("same", "frozen"),
        "empty": ("same", "empty"),
        "norm.running_var": ("dense", "norm.running_var"),
        "head.weight": ("dense", None),
        "fresh": ("dense", None),
    }
    assert {k: (v.dtype, v.shape) for k, v in out.items()} == {
        k: (v.dtype, v.shape) for k, v in tuned.items()
    }
    for name in ("count", "flags", "frozen", "norm.running_var", "fresh"):
        assert torch.equal(out[name], tuned[name]), name
    torch.testing.assert_close(out["head.weight"], tuned["head.weight"], rtol=2**-11, atol=0)
    assert found.size < 4000 and found.remarks == (
        "kept whole, as BASE lacks them: fresh, head.weight",
    )


def test_tied_tensors_stay_tied_and_cost_one(tmp_path):
    base = weights(0)
    base["lm_head"] = base["b.weight"].clone()
    tuned = moved(weights(0))
    tuned["lm_head"] = tuned["b.weight"].clone()
    tuned["also"] = tuned["b.weight"].clone()  # a name that the base dropped when it was saved
    found, _, out = there_and_back(tmp_path, base, tuned, Pruning(method="dare", p=0.9))
    ties = {row.name: row.source for row in found.header.rows if row.role == "tied"}
    assert ties == {"also": "b.weight", "lm_head": "b.weight"}
    assert torch.equal(out["lm_head"], out["b.weight"]) and torch.equal(out["also"], out["lm_head"])
    assert not torch.equal(out["lm_head"], base["lm_head"])


def test_of_equal_tensors_the_one_that_changed_least_stands_for_all(tmp_path):
    base = weights(0) | {"a": torch.zeros(40, 30), "frozen": torch.ones(3, 3)}
    tuned = moved(weights(0))
    tuned |= {"a": tuned["b.weight"].clone(), "frozen": torch.ones(3, 3), "new": torch.ones(3, 3)}
    found, _, out = there_and_back(tmp_path, base, tuned, Pruning(method="dare", p=0.9))
    ties = {row.name: row.source for row in found.header.rows if row.role == "tied"}
    assert ties == {"a": "b.weight", "new": "frozen"}
    assert torch.equal(out["new"], torch.ones(3, 3))


@pytest.mark.parametrize(
    ("base_names", "tuned_names"), [("{}", "bert.{}"), ("model.{}", "{}"), ("x.y.{}", "{}")]
)
def test_names_that_differ_by_a_prefix_belong_together(tmp_path, base_names, tuned_names):
    base = {base_names.format(k): v for k, v in weights(0).items()}
    tuned = {tuned_names.format(k): v for k, v in moved(weights(0)).items()} | {
        "classifier.weight": torch.ones(2, 2)
    }
    found, _, out = there_and_back(tmp_path, base, tuned, Pruning(method="dare", p=0.9))
    pruned = [row for row in found.header.rows if row.role == "pruned"]
    assert len(pruned) == 4 and all(row.base != row.name for row in pruned)
    assert set(out) == set(tuned)
    assert any("4 names begin with" in remark for remark in found.remarks)


def test_another_model_is_no_base_and_a_line_says_so(tmp_path):
    tuned = {f"other.net.of.{k}": v for k, v in weights(1).items()}
    found, _, out = there_and_back(tmp_path, weights(0), tuned, Pruning(method="dare", p=0.9))
    assert "100% of all entries, have no counterpart in BASE" in found.remarks[0]
    assert set(out) == set(tuned)


def test_a_model_that_did_not_change_is_all_base(tmp_path):
    found, _, out = there_and_back(tmp_path, ODD, ODD, Pruning(method="dare", p=0.9))
    assert found.header.packets == () and found.size < 1000 and same(out, ODD)
    assert found.remarks == ("FINETUNED does not differ from BASE",)


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_fine_tuned_models_type_comes_out(tmp_path, before, after):
    base = weights(0, TYPES[before]) | {"still": torch.linspace(-2, 2, 50).to(TYPES[before])}
    tuned = {k: v.to(TYPES[after]) for k, v in moved(weights(0)).items()}
    tuned["still"] = base["still"].to(TYPES[after])
    how = Pruning(method="dare", p=0.8, values="fp32", q=1.0)
    found, delta, out = there_and_back(tmp_path, base, tuned, how)
    assert {row.name: row.role for row in found.header.rows}["still"] == "same"
    coarser = [
        text for text in found.remarks if "coarser type than BASE's, 'a.bias' bfloat" in text
    ]
    assert len(coarser) == (after == "bf16")
    assert same({"still": out["still"]}, {"still": tuned["still"]})
    for row in delta.header.rows:
        if row.role != "pruned":
            continue
        positions, change = deltas.survivors_of(delta, row)
        whole = base[row.name].float().reshape(-1).clone()
        whole[positions] += torch.from_numpy(change)
        assert torch.equal(out[row.name].reshape(-1), whole.to(TYPES[after]))


def test_some_tensors_are_kept_whole_on_request(tmp_path):
    base = weights(0)
    tuned = moved(base)
    how = Pruning(method="dare", p=0.9, values="fp32", dense=("conv",), dense_below=7)
    found, _, out = there_and_back(tmp_path, base, tuned, how)
    roles = {row.name: row.role for row in found.header.rows}
    assert roles == {"a.bias": "dense", "b.weight": "pruned", "c.conv": "dense", "d": "dense"}
    for name in ("a.bias", "c.conv", "d"):
        torch.testing.assert_close(out[name], tuned[name], rtol=1e-6, atol=1e-7)


def test_whole_tensors_are_not_written_in_four_bits(tmp_path):
    head = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    tuned = moved(weights(0)) | {"head": head}
    how = Pruning(method="dare", p=0.9, values="eden1")
    _, _, out = there_and_back(tmp_path, weights(0), tuned, how)
    # float16's own numbers below 2**-14 of the largest are further apart.
    torch.testing.assert_close(out["head"], head, rtol=2**-11, atol=1e-8)


# --- Where they lie ------------------------------------------------------------------------------


def in_shards(folder: Path, tensors: Tensors, kind: str) -> Path:
    folder.mkdir()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        places[name] = f"{stem}-{number}.{kind}"
        if kind == "safetensors":
            save_file({name: tensor}, folder / places[name])
        else:
            torch.save({name: tensor}, folder / places[name])
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}.{kind}.index.json").write_text(index)
    torch.save({"not": "a tensor"}, folder / "training_args.bin")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_and_torchs_own_files_are_the_same_model(tmp_path, kind):
    base = weights(0, torch.bfloat16) | {"count": torch.arange(3)}
    tuned = moved(weights(0, torch.bfloat16)) | {"count": torch.arange(3)}
    how = Pruning(method="dare", p=0.9)
    (tmp_path / "whole").mkdir()
    there_and_back(tmp_path / "whole", base, tuned, how)
    before = open_checkpoint(in_shards(tmp_path / "base", base, kind))
    after = open_checkpoint(in_shards(tmp_path / "tuned", tuned, kind))
    deltas.prune(before, after, tmp_path / "x.darex", how)
    assert (tmp_path / "x.darex").read_bytes() == (tmp_path / "whole" / "x.darex").read_bytes()


def test_one_file_is_a_model_too_and_a_bin_shares_tied_tensors(tmp_path):
    linear = torch.nn.Linear(4, 4, bias=False)
    torch.save({"a": linear.weight, "b": linear.weight, "c": linear.weight.T}, tmp_path / "a.bin")
    found = open_checkpoint(tmp_path / "a.bin")
    assert np.array_equal(found.tensors["a"].load(), found.tensors["b"].load())
    assert np.array_equal(found.tensors["c"].load(), found.tensors["a"].load().T)


def test_a_bin_that_holds_more_than_tensors_is_refused(tmp_path):
    class Thing:
        pass

    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "a.bin")
    with pytest.raises(ConfigError, match=r"a\.bin' cannot be read: 'b' is a int and no tensor"):
        open_checkpoint(tmp_path / "a.bin")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.bin")
    with pytest.raises(ConfigError, match="more than tensors, which could run any code"):
        open_checkpoint(tmp_path / "b.bin")
    (tmp_path / "c.bin").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"c\.bin' cannot be read"):
        open_checkpoint(tmp_path / "c.bin")


def test_what_is_no_model_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"no file or folder .*nowhere.*has to be fetched first"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ConfigError, match=r"no \.safetensors or pytorch_model\*\.bin file lies"):
        open_checkpoint(tmp_path / "adapter")
    save_file(weights(0), tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="holds an adapter and no model; give --adapter"):
        open_checkpoint(tmp_path / "adapter")


# --- Small files ---------------------------------------------------------------------------------


def test_small_files_are_those_of_the_fine_tuned_model(tmp_path):
    base = saved(tmp_path / "base", weights(0), config='{"a": 1, "b": 2}', vocab="[1]")
    tuned = saved(tmp_path / "tuned", moved(weights(0)), config='{"b":2,"a":1}', head='{"c": 1}')
    (tuned / "vocab.json").write_text("[2]")
    (tuned / "1_Pooling").mkdir(), (tuned / "checkpoint-5").mkdir(), (tuned / ".git").mkdir()
    for path in ("1_Pooling/config.json", "checkpoint-5/config.json", ".git/a.txt", "model.py"):
        (tuned / path).write_text("{}")
    (tuned / "pytorch_model.bin.index.json").write_text("{}")
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    found = deltas.prune(before, after, tmp_path / "x.darex", Pruning(method="dare", p=0.5))
    assert {file.path: file.packed > 0 for file in found.header.files} == {
        "1_Pooling/config.json": True,
        "config.json": False,  # it says the same
        "head.json": True,
        "vocab.json": True,
    }
    delta = open_delta(tmp_path / "x.darex")
    deltas.apply(before, delta, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == '{"a": 1, "b": 2}'
    assert (tmp_path / "out" / "vocab.json").read_text() == "[2]"
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"
    deltas.apply(before, delta, tmp_path / "bare", carry_files=False)
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["model.safetensors"]
    (base / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"'config\.json' is to be taken from .*give --no-files"):
        deltas.apply(before, delta, tmp_path / "late")
    assert not list(tmp_path.glob("late*"))


def test_transformers_loads_what_comes_out(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, intermediate_size=8, **sizes)
    model = BertForSequenceClassification(config).eval()
    model.bert.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.01 * torch.randn_like(tensor)
    model.save_pretrained(tmp_path / "tuned")
    before, after = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")
    how = Pruning(method="dare", p=0, values="fp32")
    deltas.prune(before, after, tmp_path / "x.darex", how)
    deltas.apply(before, open_delta(tmp_path / "x.darex"), tmp_path / "out")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    inputs = {"input_ids": torch.randint(20, (2, 5))}
    with torch.no_grad():
        found, expected = loaded(**inputs).logits, model(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# --- What goes wrong -----------------------------------------------------------------------------


def test_a_wrong_base_is_refused_by_its_fingerprint(tmp_path):
    there_and_back(tmp_path, weights(0), moved(weights(0)), Pruning(method="dare", p=0.5))
    delta = open_delta(tmp_path / "x.darex")
    other = weights(0)
    other["b.weight"][3, 4] += 1e-6
    wrong = open_checkpoint(saved(tmp_path / "other", other))
    with pytest.raises(ConfigError, match=r"not the base of this file.*then called 'base'"):
        deltas.apply(wrong, delta, tmp_path / "new")
    del other["b.weight"]
    wrong = open_checkpoint(saved(tmp_path / "other", other))
    with pytest.raises(ConfigError, match=r"'b\.weight' of shape \(40, 30\) is needed"):
        deltas.apply(wrong, delta, tmp_path / "new")
    halves = {name: tensor.half() for name, tensor in weights(0).items()}
    wrong = open_checkpoint(saved(tmp_path / "other", halves))
    with pytest.raises(ConfigError, match="not the base of this file"):
        deltas.apply(wrong, delta, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


def test_tensors_of_the_base_that_are_not_needed_do_not_matter(tmp_path):
    there_and_back(tmp_path, weights(0), moved(weights(0)), Pruning(method="dare", p=0.5))
    more = open_checkpoint(saved(tmp_path / "more", weights(0) | {"pooler": torch.ones(3)}))
    deltas.apply(more, open_delta(tmp_path / "x.darex"), tmp_path / "new")


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    there_and_back(tmp_path, weights(0), moved(weights(0)), Pruning(method="dare", p=0.5))
    before, delta = open_checkpoint(tmp_path / "base"), open_delta(tmp_path / "x.darex")
    with pytest.raises(ConfigError, match=r"out' is there already; name a new folder"):
        deltas.apply(before, delta, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"there is no folder .*make it first"):
        deltas.apply(before, delta, tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    deltas.apply(before, delta, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_what_cannot_be_pruned_leaves_the_old_file_and_no_half_one(tmp_path):
    base, tuned = weights(0), moved(weights(0))
    there_and_back(tmp_path, base, tuned, Pruning(method="dare", p=0.5))
    old = (tmp_path / "x.darex").read_bytes()
    tuned["c.conv"][1, 1, 1, 1] = float("nan")
    after = open_checkpoint(saved(tmp_path / "odd", tuned))
    for how in (Pruning(method="dare", p=0), Pruning(method="magnitude", p=0)):
        with pytest.raises(DeltaError, match=r"'c\.conv' holds NaN"):
            deltas.prune(open_checkpoint(tmp_path / "base"), after, tmp_path / "x.darex", how)
    assert (tmp_path / "x.darex").read_bytes() == old
    assert [path.name for path in tmp_path.glob("x*")] == ["x.darex"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"p": 1.0}, "p = 1.0; allowed: from 0 to below 1"),
        ({"p": float("nan")}, "p = nan; allowed"),
        ({"p": 1 - 2**-40}, "p = 0.9999"),
        ({"method": "dair"}, "method = 'dair'; allowed: dare, .*did you mean 'dare'"),
        ({"values": "fp8"}, "values = 'fp8'; allowed: .*fp32"),
        ({"q": 0.0}, "q must be 'dare'"),
        ({"q": "much"}, "q must be 'dare'"),
        ({"seed": -1}, "seed = -1; allowed: 0 to"),
        ({"scope": "rows"}, "scope = 'rows'; allowed: layer, row, global; did you mean 'row'"),
        ({"method": "structured", "columns": 0.001}, r"columns must be in \[1-p, 1\]"),
        ({"method": "wanda"}, "needs data"),
        ({"method": "wanda", "scope": "global"}, "allowed with method = 'wanda': layer, row"),
        ({"dense_below": -1}, "dense-below = -1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings, match):
    with pytest.raises(ConfigError, match=match):
        Pruning(**{"method": "dare", "p": 0.9, **settings})


def test_norms_of_other_tensors_are_not_taken_for_none(tmp_path):
    how = Pruning(method="wanda", p=0.5, norms={"other": np.ones(3)})
    with pytest.raises(
        ConfigError, match=r"norms has none of the pruned tensors, such as 'a\.bias'"
    ):
        there_and_back(tmp_path, weights(0), moved(weights(0)), how)


def test_every_flipped_byte_is_noticed(tmp_path):
    there_and_back(tmp_path, weights(0), moved(weights(0)), Pruning(method="dare", p=0.9))
    good = (tmp_path / "x.darex").read_bytes()
    for place in [*range(0, 200), *range(len(good) - 200, len(good))]:
        bad = bytearray(good)
        bad[place] ^= 1
        (tmp_path / "y.darex").write_bytes(bad)
        with pytest.raises(DarexError):
            open_delta(tmp_path / "y.darex")
    for length in (0, 3, 8, 55, len(good) // 2, len(good) - 1):
        (tmp_path / "y.darex").write_bytes(good[:length])
        with pytest.raises((PacketError, ConfigError)):
            open_delta(tmp_path / "y.darex")


# --- What is in it -------------------------------------------------------------------------------


def test_a_report_says_what_is_in_a_file(tmp_path):
    base = weights(0) | {"frozen": torch.ones(5)}
    tuned = moved(weights(0)) | {"frozen": torch.ones(5), "new": torch.tensor([2.0, -1.0])}
    how = Pruning(method="dare", p=0.75, q=0.5)
    _, delta, _ = there_and_back(tmp_path, base, tuned, how)
    report = deltas.inspect(delta)
    rows = {row.name: row for row in report.tensors}
    assert report.same == 1 and report.base_fits is None
    one = rows["b.weight"]
    expected = dare(Delta(moved(weights(0)), weights(0)), 0.75, seed=0).values["b.weight"]
    assert (one.kept, one.entries, one.q, one.size) == (expected.size, 1200, 0.5, 2 * expected.size)
    assert one.bits == 16 and one.share is None
    assert one.mean == pytest.approx(np.abs(expected).mean(), rel=1e-3)
    assert one.rms == pytest.approx(np.sqrt(np.square(expected).mean()), rel=1e-3)
    assert one.largest == pytest.approx(np.abs(expected).max(), rel=1e-3)
    assert one.noise == pytest.approx(np.sqrt(0.25 * 0.75) / 0.5)
    assert rows["new"].role == "new" and rows["new"].largest == 2.0
    known = deltas.inspect(delta, open_checkpoint(tmp_path / "base"))
    moved_by = {row.name: row.share for row in known.tensors}
    assert known.base_fits and moved_by["new"] is None
    assert moved_by["b.weight"] == pytest.approx(one.rms / base["b.weight"].square().mean() ** 0.5)
    assert json.loads(json.dumps(known.fields()))["tensors"][0]["name"] == "a.bias"


def test_the_noise_of_dare_is_what_the_closed_form_says(tmp_path):
    from fl_darex.deltas.report import noise_of

    assert noise_of(0.01, 0.01) == pytest.approx(np.sqrt(99))
    assert noise_of(0.01, 0.01, 0.57) == pytest.approx(np.sqrt(1.57 / 0.01 - 1))
    base = {"w": torch.zeros(400, 400)}
    tuned = {"w": torch.randn(400, 400, generator=torch.Generator().manual_seed(0))}
    how = Pruning(method="dare", p=0.9, values="eden1")
    _, delta, out = there_and_back(tmp_path, base, tuned, how)
    (row,) = deltas.inspect(delta).tensors
    measured = float((out["w"] - tuned["w"]).norm() / tuned["w"].norm())
    assert row.noise == pytest.approx(measured, rel=0.05)


def test_listed_positions_count_in_the_bytes_of_a_tensor(tmp_path):
    how = Pruning(method="magnitude", p=0.9)
    found, delta, _ = there_and_back(tmp_path, weights(0), moved(weights(0)), how)
    report = deltas.inspect(delta)
    inside = sum(row.size for row in report.tensors)
    assert 0 <= inside - (found.header.packets[0] - 96) <= len(report.tensors)
    assert all(row.noise is None for row in report.tensors)


def test_progress_is_told_from_nothing_to_all(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def hear(what: str, done: int, total: int) -> None:
        told.setdefault(what, []).append((done, total))

    before = open_checkpoint(saved(tmp_path / "base", weights(0)))
    after = open_checkpoint(saved(tmp_path / "tuned", moved(weights(0))))
    how: Any = Pruning(method="dare", p=0.9)
    deltas.prune(before, after, tmp_path / "x.darex", how, told=hear)
    deltas.apply(before, open_delta(tmp_path / "x.darex"), tmp_path / "out", told=hear)
    assert set(told) == {"reading BASE", "pruning", "checking BASE", "writing"}
    for steps in told.values():
        assert steps[-1][0] == steps[-1][1] and steps == sorted(steps)
