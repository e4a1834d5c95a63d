"""The task that comes with the package: digits, its model, its checkpoint."""

import base64
import hashlib
import importlib
import json
import multiprocessing.pool
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task
from fl_darex.tasks.digits import checkpoint
from fl_darex.tasks.digits import task as digits

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def digits_pretrain():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("digits_pretrain")


@pytest.fixture(scope="module")
def task():
    return load_task(make_config({}))


def batch_of(task, data):
    return task.collate([data[i] for i in range(len(data))])


def evaluate(task, model, data):
    batch = batch_of(task, data)
    with torch.no_grad():
        logits = model(**batch).logits
    return task.score(logits.numpy(), batch["labels"].numpy())


def test_the_split_is_fixed_complete_and_stratified():
    train, evaluation = digits.split_indices()
    assert (len(train), len(evaluation)) == (1347, 450)
    assert sorted([*train, *evaluation]) == list(range(1797))
    labels = digits.images_and_labels(evaluation)[1]
    assert set(np.bincount(labels)) <= {43, 44, 45, 46}
    # A literal: the packaged model has seen the others.
    assert evaluation[:6].tolist() == FIRST_EVALUATION_ROWS


FIRST_EVALUATION_ROWS = [7, 16, 17, 24, 26, 27]


def test_pretraining_sees_no_evaluation_image(monkeypatch, digits_pretrain):
    seen = []
    original = digits_pretrain.images_and_labels
    monkeypatch.setattr(
        digits_pretrain, "images_and_labels", lambda rows: seen.extend(rows) or original(rows)
    )
    digits_pretrain.pretrain(steps=1)
    train, evaluation = digits.split_indices()
    assert sorted(seen) == train.tolist()
    assert not set(seen) & set(evaluation)


def test_pretraining_is_seeded_and_keeps_the_global_generator(digits_pretrain):
    before = torch.random.get_rng_state()
    first, again, other = (digits_pretrain.pretrain(steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "classifier.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_the_file_that_pretraining_writes_loads_back(tmp_path, digits_pretrain):
    model = digits_pretrain.pretrain(steps=2)
    digits_pretrain.save(model, tmp_path / "packed")
    loaded = digits.load_vit(str(checkpoint.materialise(tmp_path / "packed"))).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_the_model_has_about_200_000_float32_weights_and_no_new_tensor(task):
    model = task.load_model()
    assert 190_000 <= sum(p.numel() for p in model.parameters()) <= 210_000
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert task.fresh == ()


def test_before_fine_tuning_the_model_knows_turned_digits_and_not_upright_ones(
    task, digits_pretrain
):
    model = task.load_model()
    assert evaluate(task, model, task.evaluation)["accuracy"] <= 0.60
    images, labels = digits.images_and_labels(digits.split_indices()[1])
    assert digits_pretrain.accuracy(model, digits_pretrain.turned(images), labels) >= 0.9


def test_loading_twice_gives_equal_bits_in_separate_memory(task):
    first, second = task.load_model(), task.load_model()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    with torch.no_grad():
        first.classifier.weight.zero_()
    assert second.classifier.weight.abs().sum() > 0
    assert task.load_model().classifier.weight.abs().sum() > 0


def test_loading_leaves_the_global_generator_alone(task):
    before = torch.random.get_rng_state()
    task.load_model()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_has_the_stated_shapes_and_a_loss(task):
    batch = task.collate([task.train[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert -1 <= batch["pixel_values"].min() < batch["pixel_values"].max() <= 1
    assert batch["labels"].dtype == torch.int64
    output = task.load_model()(**batch)
    assert output.logits.shape == (3, 10)
    assert output.loss.isfinite()


def test_partitions_are_disjoint_and_cover_the_training_images(task):
    parts = [task.partition(i) for i in range(10)]
    images = [np.asarray(part["pixel_values"][:]).reshape(len(part), -1) for part in parts]
    everything = np.asarray(task.train["pixel_values"][:]).reshape(1347, -1)
    assert sorted(map(tuple, np.concatenate(images))) == sorted(map(tuple, everything))


@given(clients=st.integers(1, 30), examples=st.integers(30, 450))
@settings(max_examples=8, deadline=None)
def test_evaluation_shares_are_even_for_any_number_of_clients(clients, examples):
    settings = {"federation.clients": clients, "task.eval-examples": examples}
    task = load_task(make_config(settings))
    sizes = [len(task.evaluation_partition(i)) for i in range(clients)]
    assert sum(sizes) == examples
    assert max(sizes) - min(sizes) <= 1


def test_evaluation_shares_together_are_the_evaluation_images(task):
    shares = [task.evaluation_partition(i)["label"][:] for i in range(10)]
    assert np.concatenate(shares).tolist() == list(task.evaluation["label"][:])


def test_numbers_of_examples_can_be_limited_to_the_same_ones_for_every_seed():
    small, same = (
        load_task(
            make_config(
                {"task.train-examples": 100, "task.eval-examples": 20, "federation.seed": seed}
            )
        )
        for seed in (0, 1)
    )
    assert (len(small.train), len(small.evaluation)) == (100, 20)
    assert small.train[:]["pixel_values"].tolist() == same.train[:]["pixel_values"].tolist()
    assert small.evaluation[:]["label"].tolist() == same.evaluation[:]["label"].tolist()


def test_fifty_steps_of_central_fine_tuning_bring_it_above_80_percent(task):
    model = task.load_model()
    batch = batch_of(task, task.train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(50):
        rows = torch.randint(len(task.train), (32,), generator=generator)
        model(**{key: value[rows] for key, value in batch.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert evaluate(task, model, task.evaluation)["accuracy"] > 0.8


def test_settings_are_chosen_on_training_images_alone() -> None:
    tuned, usual = (load_task(make_config({"task.tuning-examples": count})) for count in (300, 0))
    assert (len(tuned.train), len(tuned.evaluation)) == (1047, 300)
    pixels = {np.asarray(row["pixel_values"]).tobytes() for row in usual.train}
    assert all(np.asarray(row["pixel_values"]).tobytes() in pixels for row in tuned.evaluation)


REFUSED = [
    ({"task.dataset": "mnist"}, "task.dataset = 'mnist'.*leave task.dataset empty"),
    ({"task.subset": "sst2"}, "task.subset = 'sst2'.*leave task.subset empty"),
    ({"task.holdout": 10}, "task.holdout = 10.*set task.holdout = 0"),
    ({"task.metric": "pearson-spearman"}, "does not fit a dataset with 10 classes"),
    ({"task.model": "./nowhere"}, "task.model = './nowhere': no such folder"),
    ({"federation.clients": 1348}, "more than the 1347 training examples"),
    ({"federation.clients": 451, "federation.evaluate": "clients"}, "there are 450 for"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_a_setting_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        task = load_task(make_config(settings))
        task.load_model()


def test_a_model_that_is_no_vision_transformer_for_digits_is_refused(tmp_path):
    from transformers import BertConfig, ViTConfig

    cases = {"bert": BertConfig(), "large": ViTConfig(), "empty": None}
    for name, config in cases.items():
        (tmp_path / name).mkdir()
        if config:
            config.save_pretrained(tmp_path / name)
    messages = {
        "bert": "is a model of type 'bert'.*1x8x8",
        "large": "takes 3x224x224 images",
        "empty": "has no config.json",
    }
    for name, message in messages.items():
        with pytest.raises(ConfigError, match=message):
            digits.load_vit(str(tmp_path / name))


def test_a_damaged_model_file_of_the_user_is_one_clear_line(tmp_path):
    source = digits.checkpoint_folder()
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="its weights cannot be loaded") as caught:
        digits.load_vit(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_folder_with_a_fitting_model_is_accepted(tmp_path):
    model = digits.load_vit().model
    model.save_pretrained(tmp_path)
    task = load_task(make_config({"task.model": str(tmp_path)}))
    assert torch.equal(task.load_model().classifier.weight, model.classifier.weight)


# --- the packaged checkpoint --------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_packaged_checkpoint_is_text_and_small():
    packed = digits.PACKAGED
    assert {path.name for path in packed.iterdir()} == {"config.json", "model.safetensors.json"}
    assert sum(path.stat().st_size for path in packed.iterdir()) < 1_100_000


@given(st.binary(max_size=1000))
def test_unpacking_inverts_packing(digits_pretrain, content):
    assert checkpoint.unpack(digits_pretrain.pack(content)) == content


@given(st.binary(min_size=1, max_size=50), st.data())
def test_every_changed_byte_is_noticed(digits_pretrain, content, data):
    packed = json.loads(digits_pretrain.pack(content))
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    packed["base64"] = [base64.b64encode(changed).decode()]
    with pytest.raises(ConfigError, match="damaged; install fl-darex again"):
        checkpoint.unpack(json.dumps(packed))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base64": 1, "sha256": ""}', "null"])
def test_a_text_that_is_no_packed_checkpoint_is_refused(text):
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.unpack(text)


def test_a_missing_packed_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'nothing' cannot be read"):
        checkpoint.materialise(tmp_path / "nothing")


def test_the_checkpoint_is_unpacked_once_and_repaired_when_damaged(cache):
    folder = digits.checkpoint_folder()
    assert folder.parent == cache
    weights = folder / "model.safetensors"
    content, written = weights.read_bytes(), weights.stat().st_mtime_ns
    assert digits.checkpoint_folder() == folder
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(content[:-1] + b"\0")
    (folder / "config.json").unlink()
    assert digits.checkpoint_folder() == folder
    assert weights.read_bytes() == content
    assert (folder / "config.json").is_file()


def test_an_unusable_cache_gives_way_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path / "file" / "cache"))
    folder = digits.checkpoint_folder()
    assert (folder / "model.safetensors").is_file()
    assert tmp_path not in folder.parents
    assert digits.checkpoint_folder() == folder


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("FL_DAREX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoint.cache_root() == tmp_path / "fl-darex"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint.cache_root() == tmp_path / ".cache" / "fl-darex"


def _unpack_and_hash(folder):
    os.environ["FL_DAREX_CACHE"] = folder
    return [hash_of(digits.checkpoint_folder() / "model.safetensors") for _ in range(5)]


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_many_threads_unpack_at_once_without_a_torn_file(cache):
    with multiprocessing.pool.ThreadPool(8) as pool:
        hashes = pool.map(_unpack_and_hash, [str(cache)] * 16)
    assert len({value for each in hashes for value in each}) == 1
    assert [path.name for path in cache.iterdir()] == [digits.checkpoint_folder().name]
    assert len(list(digits.checkpoint_folder().iterdir())) == 2


def test_another_process_gets_the_same_weights(task):
    code = (
        "from fl_darex.config import make_config; from fl_darex.tasks import load_task\n"
        "m = load_task(make_config({})).load_model()\n"
        "print(sum(float(p.double().sum()) for p in m.state_dict().values()).hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    expected = sum(float(p.double().sum()) for p in task.load_model().state_dict().values())
    assert float.fromhex(done.stdout) == expected
