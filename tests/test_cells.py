"""Tables as people have them: labels of every spelling, headers, encodings, columns of any type."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from lms import save_gpt2, save_sums
from pictures import save_tiny_vit, table
from texts import save_tiny_bert, sentences, write

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task
from fl_darex.tasks.labels import Labels, encode_labels, parse_cell


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Any:
    """Loads the task on files of these contents: text, bytes, or rows to be written."""

    def load(files: dict[str, Any], **settings: Any) -> Any:
        for name, content in files.items():
            path = tmp_path / name
            if isinstance(content, list):
                write(path, content)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        keys: dict[str, Any] = {"task.name": "text-classification", "federation.clients": 2}
        keys |= {"task.model": str(model), "task.dataset": str(tmp_path), "task.max-length": 16}
        dotted = {k.replace("__", ".").replace("_", "-"): v for k, v in settings.items()}
        return load_task(make_config(keys | dotted))

    return load


@pytest.fixture
def refused(load: Any) -> Any:
    def refused(message: str, files: dict[str, Any], **settings: Any) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            load(files, **settings)
        assert "\n" not in str(caught.value)

    return refused


def csv(*labels: Any, header: str = "sentence,label") -> str:
    return "\n".join([header, *(f"film {i},{label}" for i, label in enumerate(labels))]) + "\n"


TWO = csv(0, 1, 0, 1)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", "  ", '""'])
def test_a_blank_label_is_refused_with_file_and_row(refused: Any, blank: str) -> None:
    message = r"column 'label': row 3 of '.*/validation.csv' \(line 4\) has no label; fill it in"
    refused(message, {"train.csv": TWO, "validation.csv": csv(0, 1, blank, 1)})


def test_a_label_of_null_or_nothing_is_refused_in_every_format(
    refused: Any, tmp_path: Path
) -> None:
    rows = sentences(4)
    for blank in (None, "", float("nan")):
        bad = [*rows, {**rows[0], "label": blank}]
        message = r"row 5 of '.*/train.jsonl' \(line 5\) has no label"
        refused(message, {"train.jsonl": bad, "validation.jsonl": rows})
    (tmp_path / "train.jsonl").unlink()
    frame = pandas.DataFrame({"sentence": ["a", "b", "c"], "label": [0.0, None, None]})
    frame.to_parquet(tmp_path / "train.parquet")
    refused(r"row 2 of '.*/train.parquet' \(and 1 more\) has no label", {})


def test_whole_numbers_with_a_point_in_one_split_are_the_whole_numbers_of_the_other(
    load: Any,
) -> None:
    for train, other in ((TWO, csv("1.0", "0.0")), (csv("0.0", "1.0"), csv(1, 0))):
        task = load({"train.csv": train, "validation.csv": other})
        assert task.metric_name == "accuracy"
        assert list(task.evaluation["label"]) == [1, 0]
        assert list(task.train["label"])[:2] == [0, 1]
        assert task.notes == ()


def test_numbers_with_a_point_everywhere_are_amounts_and_the_log_says_so(load: Any) -> None:
    task = load({"train.csv": csv("0.0", "1.0"), "validation.csv": csv("1.0", "0.0")})
    assert task.metric_name == "pearson-spearman"
    assert "0.0 and the like: numbers with a point are amounts" in task.notes[0]


def test_whole_numbers_among_fractions_are_amounts_and_the_log_says_so(load: Any) -> None:
    task = load({"train.csv": csv(1, 2.5, 0), "validation.csv": csv(1, 2)})
    assert task.metric_name == "pearson-spearman"
    assert "taken as amounts (a regression)" in task.notes[0]
    task = load({"train.csv": csv("1.0", 2.5), "validation.csv": csv(0.5, 2)})
    assert task.notes == ()


MIXED = [
    (csv(0, 1, "two"), TWO, "texts .'two' in row 3 of .*train.csv.* and whole numbers .0 in row 1"),
    (TWO, csv("a", "b"), "texts .'a' in row 1 of .*validation.csv.* and whole numbers"),
    (TWO, csv(0, 0.5), "whole numbers in the training data .classes. and 0.5 in row 2 of .*valid"),
    (csv(0, 1, "nan"), TWO, "texts .'nan'"),
    (csv(0, 1, "1_0"), TWO, "texts .'1_0'"),
    (csv('"0,5"', '"1,5"'), csv('"0,5"'), "holds '0,5'; write numbers with a point: 0.5"),
    (csv("1e999", 0.5), TWO, "row 1 of .*train.csv.* holds a number that is not finite"),
]


@pytest.mark.parametrize(("train", "validation", "message"), MIXED)
def test_labels_of_mixed_kinds_are_refused_with_a_row_of_each(
    refused: Any, train: str, validation: str, message: str
) -> None:
    refused(message, {"train.csv": train, "validation.csv": validation})


def test_true_and_false_are_classes_but_not_beside_numbers(load: Any, refused: Any) -> None:
    rows = [{"sentence": "film", "label": i % 2 == 0} for i in range(6)]
    task = load({"train.jsonl": rows, "validation.jsonl": rows})
    assert list(task.train["label"][:2]) == [1, 0]
    files = {"train.jsonl": rows, "validation.jsonl": sentences(4)}
    refused("true and false .*row 1 of .*train.* and whole numbers", files)


def test_spaces_around_a_class_do_not_make_another(load: Any) -> None:
    rows = [{"sentence": "film", "label": name} for name in ("good", "good ", " bad", "bad")]
    task = load({"train.jsonl": rows, "validation.csv": csv("good", "  bad")})
    assert task.load_model().config.id2label == {0: "bad", 1: "good"}
    assert list(task.evaluation["label"]) == [1, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), (" -7 ", -7), ("+7", 7), ("7.", 7.0), (".5", 0.5), ("1e-3", 0.001), ("inf", "inf")],
)
def test_a_cell_is_a_number_where_it_reads_as_one(text: str, value: Any) -> None:
    found = parse_cell(text)
    assert found == value and type(found) is type(value)


def test_labels_of_three_splits_are_understood_together() -> None:
    splits = [Labels(values, str) for values in ([2, 1], [1.0], [2.0, 1.0])]
    found = encode_labels(splits, ())
    assert (found.ids, found.names, found.numbered) == ([[1, 0], [0], [1, 0]], ("1", "2"), False)


def test_test_texts_without_the_label_column_are_no_evaluation_data(
    load: Any, refused: Any
) -> None:
    files = {"train.csv": TWO, "test.csv": "sentence\nfilm\nplot\n"}
    refused("the test split has no labels.*set task.holdout", files)
    assert len(load(files, task__holdout=2).evaluation) == 2


# --- files ----------------------------------------------------------------------------------------


def test_a_column_twice_is_refused(refused: Any, tmp_path: Path) -> None:
    twice = "sentence,label,label\na,0,1\n"
    refused("header of '.*train.csv' has the column 'label' twice", {"train.csv": twice})
    (tmp_path / "train.csv").unlink()
    twice = '{"sentence": "a", "label": 0, "label": 1}\n'
    refused(
        "line 1 of '.*' cannot be read: an object has the key 'label' twice", {"train.jsonl": twice}
    )
    (tmp_path / "train.jsonl").unlink()
    refused("the key 'label' twice", {"train.json": f"[{twice}]"})
    (tmp_path / "train.json").unlink()
    columns = [pyarrow.array(["a"]), pyarrow.array([0]), pyarrow.array([1])]
    made = pyarrow.table(columns, names=["sentence", "label", "label"])
    pyarrow.parquet.write_table(made, tmp_path / "train.parquet")
    refused("train.parquet' has the column 'label' twice", {})


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json"])
def test_other_encodings_are_named_with_the_place_and_the_way_out(
    refused: Any, tmp_path: Path, name: str
) -> None:
    content = "sentence,label\ncafé,0\n"
    message = r"is not UTF-8 text: byte 18 \(line 2\) is 0xe9, .*save it as UTF-8 .*iconv -f WIN"
    refused(message, {name: content.encode("latin-1")})
    refused(
        r"byte 0 \(line 1\) is 0xff, as UTF-16 has it.*-f UTF-16", {name: content.encode("utf-16")}
    )


def test_a_folder_without_a_file_that_is_known_says_what_it_holds(
    refused: Any, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("Train.CSV", "train.txt", "train.xlsx", ".hidden"):
        (tmp_path / "data" / name).write_text("x")
    message = "found no file named train, validation or test among Train.CSV, train.txt, train.xlsx"
    refused(message, {}, task__dataset=str(tmp_path / "data"))


def test_a_long_text_is_read_whole(load: Any) -> None:
    long = "good film " * 20_000
    task = load({"train.csv": f"sentence,label\n{long},0\nbad,1\n", "validation.csv": TWO})
    assert task.train["sentence"][0] == long
    assert task.load_model()(**task.collate([task.train[0]])).loss.isfinite()


@pytest.mark.parametrize(
    "content",
    [
        '\ufeffsentence,label\r\ngood,0\r\n"a\r\nplot",1\r\n',
        'sentence;label\ngood;0\n"a\r\nplot";1\n',
        'sep=;\r\nsentence;label\r\ngood;0\r\n"a\r\nplot";1\r\n',
        'sentence\tlabel\ngood\t0\n"a\r\nplot"\t1\n',
        ' sentence , label ,,\ngood,0,,\n\n,,,\n"a\r\nplot", 1,x,\n',
        '\n\nsentence,label\ngood,0\n"a\r\nplot",1\n\n',
    ],
)
def test_spreadsheets_of_every_kind_give_the_same_rows(load: Any, content: str) -> None:
    task = load({"train.csv": content, "validation.csv": TWO})
    assert list(task.train["sentence"]) == ["good", "a\r\nplot"]
    assert list(task.train["label"]) == [0, 1]


def test_a_file_with_tabs_has_commas_in_its_header_and_texts(load: Any) -> None:
    content = "sentence\tlabel\tnote, or none\ngood, too\t0\t\nbad\t1\tx\n"
    task = load({"train.tsv": content, "validation.csv": TWO})
    assert list(task.train["sentence"]) == ["good, too", "bad"]
    assert list(task.train["label"]) == [0, 1]


def test_a_text_with_semicolons_under_a_header_with_commas_is_a_text(load: Any) -> None:
    task = load({"train.csv": csv(0, 1).replace("film 0", "good; bad"), "validation.csv": TWO})
    assert task.train["sentence"][0] == "good; bad"


def test_columns_that_play_no_part_may_hold_anything(load: Any, tmp_path: Path) -> None:
    odd = [{"a": [1, {"b": None}]}, [1, "x"], None, 7, "text", 1.5]
    rows = [{**row, "extra": one} for row, one in zip(sentences(6), odd, strict=True)]
    task = load({"train.jsonl": rows, "validation.jsonl": sentences(4)})
    assert task.train.column_names == ["sentence", "label"]
    (tmp_path / "train.jsonl").unlink()
    frame = pandas.DataFrame({"sentence": ["good", "bad"], "label": [0, 1]})
    made = pyarrow.Table.from_pandas(frame)
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.int64())
    for name, column in {
        "map": pyarrow.array([[("a", 1)], []], type=pairs),
        "fixed": pyarrow.array([b"ab", b"cd"], type=pyarrow.binary(2)),
        "decimal": pyarrow.array([Decimal("1.5"), None]),
        "day": pyarrow.array([datetime.date(2020, 1, 1), None]),
        "nothing": pyarrow.nulls(2),
        "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
    }.items():
        made = made.append_column(name, column)
    pyarrow.parquet.write_table(made, tmp_path / "train.parquet")
    assert list(load({}).train["sentence"]) == ["good", "bad"]


def test_an_owner_column_of_mixed_kinds_is_an_error_and_no_traceback(refused: Any) -> None:
    rows = [{**row, "user": owner} for row, owner in zip(sentences(4), [1, "a"] * 2, strict=True)]
    settings = {"federation__partition": "natural", "federation__partition_column": "user"}
    files = {"train.jsonl": rows, "validation.jsonl": sentences(4)}
    refused("column 'user' of .*train.jsonl' makes no column of one kind", files, **settings)


def test_half_a_character_is_refused_with_its_row(refused: Any) -> None:
    half = '{"sentence": "good \\ud83d", "label": 0}\n{"sentence": "bad", "label": 1}\n'
    message = r"'sentence', row 1 of .*: the text holds '\\ud83d', half of a character"
    refused(message, {"train.jsonl": half, "validation.jsonl": sentences(4)})


# --- columns --------------------------------------------------------------------------------------

REVIEWS = "id,title,body,stars\n1,good,a film,5\n2,bad,a plot,1\n3,great,the film,5\n4,bad,not,1\n"


def test_columns_are_named_by_settings(load: Any) -> None:
    files = {"train.csv": REVIEWS, "validation.csv": REVIEWS}
    names = {"task__text_columns": "title, body", "task__label_column": "stars"}
    task = load(files, **names)
    assert task.train.column_names == ["title", "body", "label"]
    assert list(task.train["label"]) == [1, 0, 1, 0]
    assert task.load_model().config.id2label == {0: "1", 1: "5"}
    batch = task.collate([task.train[0]])
    assert batch["input_ids"].shape == (1, 6)  # [CLS] good [SEP] a film [SEP]
    one = load(files, **names | {"task__text_columns": "body"})
    assert one.train.column_names == ["body", "label"]
    skewed = {"federation__partition": "pathological", "federation__classes_per_client": 1}
    assert {tuple(set(load(files, **names, **skewed).partition(i)["label"])) for i in (0, 1)} == {
        (0,),
        (1,),
    }


WRONG = [
    (("headline", "stars"), "task.text-columns = 'headline': the train data have no column 'headl"),
    (("titel", "stars"), "columns: id, title, body, stars; did you mean 'title'"),
    (("title", "star"), "task.label-column = 'star': .* columns: id, .*did you mean 'stars'"),
    (("title,", "stars"), "task.text-columns = 'title,' is not allowed; name one column, or two"),
    (("title,body,id", "stars"), "name one column, or two"),
    (("title,title", "stars"), "name one column, or two different"),
    (("title", "stars,id"), "task.label-column = 'stars,id' is not allowed; name one column$"),
    (("stars", "stars"), "column 'stars' is both text and label"),
    (("", "stars"), "has no text column; .*name another in task.text-columns"),
    (("title", ""), "has no column 'label'; .*name another in task.label-column"),
]


@pytest.mark.parametrize(("names", "message"), WRONG)
def test_wrong_names_of_columns_list_those_there_are(
    refused: Any, names: tuple[str, str], message: str
) -> None:
    settings = {"task__text_columns": names[0], "task__label_column": names[1]}
    refused(message, {"train.csv": REVIEWS, "validation.csv": REVIEWS}, **settings)


def test_a_column_called_label_that_holds_something_else_is_refused(refused: Any) -> None:
    rows = [{"sentence": "good", "label": f"u{i % 2}", "class": i % 2} for i in range(6)]
    files = {"train.jsonl": rows, "validation.jsonl": rows}
    text = {"task__label_column": "class", "task__text_columns": "label"}
    refused("task.text-columns = 'label', but the labels are in task.label-column", files, **text)
    owner = {"federation__partition": "natural", "federation__partition_column": "label"}
    message = "federation.partition-column = 'label', but the labels are in"
    refused(message, files, task__label_column="class", **owner)


def test_names_of_classes_come_from_the_label_column_that_is_named(
    load: Any, tmp_path: Path
) -> None:
    rows = table(6, label="animal", sentence=["good", "bad film"]).remove_columns("image")
    rows.to_parquet(tmp_path / "train.parquet")
    task = load({}, task__label_column="animal", task__holdout=2)
    assert task.load_model().config.id2label == {0: "cat", 1: "dog", 2: "owl"}


def test_a_language_model_learns_from_the_columns_that_are_named(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "gpt2")
    save_sums(tmp_path / "data")
    keys: dict[str, Any] = {"task.name": "causal-lm", "task.model": str(tmp_path / "gpt2")}
    keys |= {"task.dataset": str(tmp_path / "data"), "federation.clients": 2}
    one = load_task(make_config(keys | {"task.text-columns": "answer"}))
    assert one.train.column_names == ["answer"]
    two = load_task(make_config(keys | {"task.text-columns": "user,answer"}))
    assert two.train.column_names == ["user", "answer"]
    first: Any = two
    assert first.tokens.prompts([{"user": "u1", "answer": "x"}]) == first.tokens.prompts(
        [{"user": "u1", "answer": "y"}]
    )
    with pytest.raises(ConfigError, match=r"task.text-columns = 'reply': .*did you mean|columns:"):
        load_task(make_config(keys | {"task.text-columns": "reply"}))
    with pytest.raises(ConfigError, match=r"task.label-column = 'x' is for .*'text-class.* alone"):
        load_task(make_config(keys | {"task.label-column": "x"}))


def test_an_image_data_set_has_its_label_column_named(tmp_path: Path) -> None:
    save_tiny_vit(tmp_path / "vit")
    (tmp_path / "data").mkdir()
    rows = table(12, label="animal", note=["x", "y"])
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    keys: dict[str, Any] = {"task.name": "image-classification", "task.holdout": 3}
    keys |= {"task.model": str(tmp_path / "vit"), "task.dataset": str(tmp_path / "data")}
    keys |= {"federation.clients": 2}
    task = load_task(make_config(keys | {"task.label-column": "note"}))
    assert task.load_model().config.id2label == {0: "x", 1: "y"}
    with pytest.raises(ConfigError, match=r"task.label-column = 'anmal': .*did you mean 'animal'"):
        load_task(make_config(keys | {"task.label-column": "anmal"}))
    with pytest.raises(ConfigError, match=r"task.text-columns = 'note' is for"):
        load_task(make_config(keys | {"task.text-columns": "note"}))


def test_a_json_file_of_rows_with_nested_values_is_read(load: Any) -> None:
    rows = [{**row, "meta": {"id": i}} for i, row in enumerate(sentences(4))]
    task = load({"train.json": json.dumps(rows), "validation.json": json.dumps(rows)})
    assert len(task.train) == 4
