"""Image classification on a tiny local model and pictures made here."""

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from pictures import (
    CLASSES,
    SIDE,
    VIT,
    encoded,
    picture,
    save_processor,
    save_tiny_vit,
    table,
    write_folders,
)
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertConfig,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
)

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task
from fl_darex.tasks.image.data import ORIGIN
from fl_darex.tasks.image.pictures import open_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def data(tmp_path):
    write_folders(tmp_path / "data", "train", 24)
    return write_folders(tmp_path / "data", "validation", 9)


def load(model, data, **settings):
    keys = {"task.name": "image-classification", "federation.clients": 4}
    keys |= {"task.model": str(model), "task.dataset": str(data)}
    dotted = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return load_task(make_config(keys | dotted))


def pixels(task, part="train"):
    rows = getattr(task, part)
    return task.collate([rows[i] for i in range(len(rows))])


# --- what works -----------------------------------------------------------------------------------


def test_folders_of_classes_become_batches_of_the_models_own_preprocessing(model, data):
    task = load(model, data)
    assert (task.metric_name, len(task.train), len(task.evaluation)) == ("accuracy", 24, 9)
    batch = pixels(task)
    assert batch["pixel_values"].shape == (24, 3, SIDE, SIDE)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    processor = AutoImageProcessor.from_pretrained(model)
    first = processor(images=Image.open(data / "train" / "cat" / "000.png"), return_tensors="pt")
    assert torch.equal(batch["pixel_values"][0], first["pixel_values"][0])
    output = task.load_model()(**batch)
    assert output.logits.shape == (24, 3) and output.loss.isfinite()
    assert task.load_model().config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize("name", ["validation", "val", "valid", "test"])
def test_the_evaluation_split_has_any_of_its_usual_names(model, tmp_path, name):
    write_folders(tmp_path, "train", 6)
    write_folders(tmp_path, name, 3)
    assert len(load(model, tmp_path).evaluation) == 3


def test_images_may_lie_deeper_and_beside_other_files(model, data):
    cats = data / "train" / "cat"
    (cats / "more").mkdir()
    picture(77).save(cats / "more" / "x.JPEG")
    (cats / ".hidden.png").write_bytes(b"")
    (cats / "notes.txt").write_text("cats")
    (data / "train" / ".cache").mkdir()
    assert len(load(model, data).train) == 25


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("img", "fine_label"), ("photo", "kind")]
)
def test_parquet_files_and_folders_give_the_same_batches(model, data, tmp_path, image, label):
    (tmp_path / "p").mkdir()
    table(24, image, label, coarse_label=[0, 1]).to_parquet(tmp_path / "p" / "train.parquet")
    table(9, image, label).to_parquet(tmp_path / "p" / "validation.parquet")
    task = load(model, tmp_path / "p")
    order = np.argsort(np.arange(24) % 3, kind="stable")
    found, expected = pixels(task), pixels(load(model, data))
    assert torch.equal(found["pixel_values"][order], expected["pixel_values"])
    assert torch.equal(found["labels"][order], expected["labels"])
    assert task.load_model().config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_files_of_other_tools_are_read(model, tmp_path, kind):
    pictures = [encoded(picture(i)) for i in range(8)]
    cells = pictures if kind == "bytes" else [{"bytes": one, "path": "x.png"} for one in pictures]
    rows = pyarrow.table({"image": cells, "label": ["a", "b"] * 4})
    pyarrow.parquet.write_table(rows, tmp_path / "train.parquet")
    task = load(model, tmp_path, task__holdout=2)
    assert (len(task.train), len(task.evaluation)) == (6, 2)
    assert pixels(task)["pixel_values"].shape == (6, 3, SIDE, SIDE)


def test_the_parts_of_a_parquet_file_are_one_table(model, tmp_path):
    for part in range(2):
        table(6).to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    table(3).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    task = load(model, tmp_path)
    assert (len(task.train), len(task.evaluation)) == (12, 3)


def test_a_dataset_of_the_hub_goes_through_the_same_checks(model, monkeypatch):
    hub = {"train": table(12, "img", "fine_label", coarse_label=[0, 1])}
    hub["test"] = table(6, "img", "fine_label", coarse_label=[0, 1])
    found = datasets.DatasetDict(hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: found)
    task = load(model, "uoft-cs/cifar100")
    assert (len(task.train), len(task.evaluation)) == (12, 6)
    assert task.load_model().config.id2label == dict(enumerate(CLASSES))
    assert task.train[0][ORIGIN] == "row 1 of the train split"
    found["test"] = hub["test"].map(lambda row: {"fine_label": -1})
    with pytest.raises(ConfigError, match=r"test split has no labels.*task.holdout"):
        load(model, "uoft-cs/cifar100")


def test_test_images_without_classes_count_as_hidden(model, data):
    (data / "validation").rename(data / "old")
    (data / "test").mkdir()
    picture(1).save(data / "test" / "1.png")
    refused("the test split has no labels", model, data)
    assert len(load(model, data, task__holdout=4).evaluation) == 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode):
    image = picture(0).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    format_ = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    found = open_image({"bytes": encoded(image, format_), "path": None}, "x")
    assert found.mode == "RGB" and found.size == (12, 10)
    plain = image.convert("RGB") if mode != "I;16" else picture(0).convert("L").convert("RGB")
    assert np.array_equal(np.asarray(found), np.asarray(plain))


def test_a_photo_is_turned_as_the_camera_says():
    image = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert open_image({"bytes": buffer.getvalue(), "path": None}, "x").size == (10, 12)


def test_the_model_is_equal_at_each_load_and_the_global_generator_stays(model, data):
    before = torch.random.get_rng_state()
    task = load(model, data)
    first, second = (task.load_model().state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_head_is_fresh_and_comes_from_the_seed_of_the_run(model, data):
    tasks = [load(model, data, federation__seed=seed) for seed in (1, 1, 2)]
    assert tasks[0].fresh == ("classifier.bias", "classifier.weight")
    heads = [task.load_model().classifier.weight for task in tasks]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_head_that_fits_is_kept_and_one_for_other_classes_is_drawn_anew(tmp_path, data):
    drawn = ("classifier.bias", "classifier.weight")
    for number, (names, fresh) in enumerate(
        [(("owl", "dog", "cat"), ()), (("a", "b", "c"), drawn), ((*CLASSES, "elk", "fox"), ())]
    ):
        folder = save_processor(tmp_path / f"head{number}")
        settings = {"id2label": dict(enumerate(names)), "label2id": {}}
        ViTForImageClassification(ViTConfig(**VIT, **settings)).save_pretrained(folder)
        task = load(folder, data)
        assert task.fresh == fresh
        kept = CLASSES if fresh else names
        assert task.load_model().config.id2label == dict(enumerate(kept))
        paths = [image["path"].split("/")[-2] for image in task.train["image"]]
        assert [kept[label] for label in task.train["label"]] == paths


@pytest.mark.slow
def test_another_process_gets_the_same_bits(model, data):
    code = (
        "import sys; from fl_darex.config import make_config\n"
        "from fl_darex.tasks import load_task\n"
        "t = load_task(make_config({'task.name': 'image-classification',\n"
        "    'task.model': sys.argv[1], 'task.dataset': sys.argv[2], 'federation.clients': 4}))\n"
        "b = t.collate(list(t.partition(2)))\n"
        "m = t.load_model()\n"
        "print([float(x.detach().double().sum()).hex() for x in\n"
        "       (b['pixel_values'], m.classifier.weight, m(**b).logits)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(data)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "54321", "OMP_NUM_THREADS": "1"},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = load(model, data)
    batch, net = task.collate(list(task.partition(2))), task.load_model()
    values = (batch["pixel_values"], net.classifier.weight, net(**batch).logits)
    torch.set_num_threads(threads)
    assert done.stdout.strip() == str([float(x.detach().double().sum()).hex() for x in values])
    assert done.stderr == ""


def test_a_convolutional_network_keeps_its_statistics(tmp_path, data):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    save_processor(tmp_path)
    task = load(tmp_path, data)
    assert task.fresh == ("classifier.1.bias", "classifier.1.weight")
    assert task.load_model()(**pixels(task)).loss.isfinite()


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological"])
def test_partitions_share_out_the_training_images(model, data, partition):
    task = load(model, data, federation__partition=partition, federation__alpha=10.0)
    origins = [row[ORIGIN] for i in range(4) for row in task.partition(i)]
    assert sorted(origins) == sorted(task.train[ORIGIN])


@pytest.mark.parametrize("owner", ["user", "label"])
def test_a_column_makes_a_natural_partition(model, tmp_path, owner):
    table(24, user=["u0", "u1", "u2"]).to_parquet(tmp_path / "train.parquet")
    table(6).to_parquet(tmp_path / "test.parquet")
    natural = {"federation__partition": "natural", "federation__partition_column": owner}
    task = load(model, tmp_path, federation__clients=3, **natural)
    assert sorted(len(set(task.partition(i)[owner])) for i in range(3)) == [1, 1, 1]


def test_numbers_of_examples_can_be_limited_and_held_out(model, data):
    task = load(model, data, task__train_examples=8, task__eval_examples=3)
    assert (len(task.train), len(task.evaluation)) == (8, 3)
    first, other = (load(model, data, task__holdout=5, federation__seed=s) for s in (1, 2))
    assert list(first.evaluation[ORIGIN]) == list(other.evaluation[ORIGIN])
    assert not set(first.evaluation[ORIGIN]) & set(first.train[ORIGIN])
    assert (len(first.train), len(first.evaluation)) == (19, 5)


def test_a_saved_model_and_its_processor_load_with_transformers_alone(model, data, tmp_path):
    task = load(model, data)
    trained = task.load_model()
    trained.save_pretrained(tmp_path / "saved")
    task.processor.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.classifier.weight, trained.classifier.weight)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    found = processor(images=[picture(0)], return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], pixels(task)["pixel_values"][0])


def test_loading_is_silent(model, data, capfd):
    load(model, data).load_model()
    assert capfd.readouterr() == ("", "")


# --- what is refused ------------------------------------------------------------------------------


def refused(message, *args, **settings):
    with pytest.raises(ConfigError, match=message) as caught:
        load(*args, **settings).load_model()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model", "dataset"])
def test_names_that_lead_nowhere_are_refused(model, data, key, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    refused(f"task.{key} is empty", model, data, **{f"task__{key}": ""})
    refused(f"task.{key} = './no': no such folder", model, data, **{f"task__{key}": "./no"})
    refused("not loaded from the hub", model, data, **{f"task__{key}": "no-such-owner/x"})


def test_a_model_that_sees_no_images_is_refused(data, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    refused("is of type 'bert', which does not classify images", tmp_path, data)


def test_a_model_without_image_processor_is_refused(data, tmp_path):
    ViTConfig(**VIT).save_pretrained(tmp_path)
    refused("has no preprocessor_config.json; save", tmp_path, data)
    (tmp_path / "preprocessor_config.json").write_text("{")
    refused("its image processor cannot be loaded", tmp_path, data)


def test_a_processor_that_does_not_fit_the_model_is_refused(data, tmp_path):
    ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path)
    save_processor(tmp_path, size={"height": 24, "width": 24})
    refused("makes images of 3x24x24 .*does not take them: Input image size", tmp_path, data)
    ViTForImageClassification(ViTConfig(**VIT, num_channels=1)).save_pretrained(tmp_path)
    save_processor(tmp_path)
    refused("makes images of 3x16x16 .*does not take them: Make sure", tmp_path, data)


def test_images_of_several_sizes_need_a_processor_that_resizes(data, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    save_processor(tmp_path, do_resize=False)
    picture(5, size=(20, 20)).save(data / "train" / "cat" / "000.png")
    task = load(tmp_path, data)
    with pytest.raises(ConfigError, match=r"no batch of images of 12x10, 20x20 pixels, .*000.png"):
        pixels(task)


BAD_IMAGES = {
    "no image": (b"nonsense", "cannot be read: cannot identify"),
    "empty": (b"", "cannot be read"),
    "cut header": (encoded(picture(0))[:20], "cannot be read"),
    "32 bits": (
        encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "32 bits per pixel.*convert it to 8 or 16 bits",
    ),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_file_that_is_no_image_is_named_at_the_start(model, data, kind):
    content, message = BAD_IMAGES[kind]
    (data / "train" / "dog" / "004.png").write_bytes(content)
    refused(f"dog/004.png': .*{message}", model, data)


def test_a_damaged_image_is_named_when_it_is_used(model, data):
    path = data / "train" / "dog" / "004.png"
    path.write_bytes(path.read_bytes()[:-60])
    task = load(model, data)
    with pytest.raises(ConfigError, match=r"dog/004.png': the image cannot be read: .*truncated"):
        pixels(task)
    path.unlink()
    with pytest.raises(ConfigError, match=r"004.png': the image cannot be read: No such file"):
        pixels(task)


@pytest.mark.parametrize(("cell", "message"), [(None, "there is no image"), (b"x", "be read")])
def test_a_row_without_a_readable_image_is_named(model, tmp_path, cell, message):
    cells = [encoded(picture(0)), encoded(picture(1)), cell, encoded(picture(3))]
    rows = pyarrow.table({"image": cells, "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(rows, tmp_path / "train.parquet")
    pyarrow.parquet.write_table(rows.slice(0, 2), tmp_path / "test.parquet")
    refused(f"row 3 of the train split: .*{message}", model, tmp_path, federation__clients=2)


def test_a_folder_without_images_or_with_a_class_too_many_is_refused(model, data, tmp_path):
    refused("no training data; found no file named train.*train/cat/1.png", model, tmp_path)
    (tmp_path / "train").mkdir()
    refused("holds no image; expected a folder for each class", model, tmp_path)
    (data / "train" / "eel").mkdir()
    refused("eel' holds no image; known: .png", model, data)
    (data / "train" / "eel").rmdir()
    (data / "validation" / "owl").rename(data / "validation" / "Owl")
    refused("validation split has class 'Owl', which train does not have", model, data)


def test_a_split_that_is_there_twice_is_refused(model, data):
    table(3).to_parquet(data / "train.parquet")
    refused("holds train/ and train.parquet; keep one", model, data)
    (data / "train.parquet").unlink()
    (data / "val").mkdir()
    refused("holds validation/ and val/; keep one", model, data)


def test_a_parquet_file_that_is_none_is_refused(model, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    refused("is not a fitting Parquet file", model, tmp_path)
    pyarrow.parquet.write_table(table(3).data.table.slice(0, 0), tmp_path / "train.parquet")
    refused("holds no example", model, tmp_path)


BAD_COLUMNS = [
    (lambda d: d.remove_columns("image"), r"no image column; columns: label \(.*name it 'image'"),
    (lambda d: d.remove_columns("label"), "no label column; columns: image .*'label' or 'labels'"),
    (
        lambda d: datasets.concatenate_datasets(
            [d.rename_column("image", "a"), d.select_columns("image").rename_column("image", "b")],
            axis=1,
        ),
        "several image columns, a, b",
    ),
    (
        lambda d: d.remove_columns("label").add_column("label", [0.5] * len(d)),
        "'label' holds numbers with a fraction; task.name = 'image-classification' needs",
    ),
    (
        lambda d: d.remove_columns("label").add_column("label", [[0, 1]] * len(d)),
        "'label' holds list .*; it must hold",
    ),
    (
        lambda d: d.remove_columns("label").add_column("label", [1] * len(d)),
        "'label' holds nothing but 1: .* 2 to 100000 classes",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_COLUMNS)
def test_columns_that_cannot_be_learned_are_refused(model, tmp_path, change, message):
    for name in ("train", "test"):
        change(table(6)).to_parquet(tmp_path / f"{name}.parquet")
    refused(message, model, tmp_path)


def test_an_evaluation_split_with_other_columns_is_refused(model, tmp_path):
    table(6, "img").to_parquet(tmp_path / "train.parquet")
    table(6, "image").to_parquet(tmp_path / "test.parquet")
    refused("the test split has no column 'img', which train has", model, tmp_path)


def test_settings_that_do_not_fit_the_data_are_refused(model, data):
    refused("'accuracy'", model, data, task__metric="pearson-spearman")
    refused("more than the 24 training examples", model, data, federation__clients=25)
    clients = {"federation__clients": 10, "federation__evaluate": "clients"}
    refused("there are 9 for federation.clients = 10", model, data, **clients)
    natural = {"federation__partition": "natural", "federation__partition_column": "usr"}
    refused("'usr' is not a column.*image, label", model, data, **natural)
    refused("task.subset = 'x'", model, data.parent, task__subset="x")
    assert len(load(model, data.parent, task__subset="data").train) == 24
