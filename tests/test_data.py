"""Reading data sets: every format, every fault with its line, splits without leaks, and text in odd shapes."""

import csv
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline import tasks
from pipeline.base.errors import DataError
from pipeline.data.batches import LengthGroupedSampler, batches_by_length, pad
from pipeline.data.examples import read_prepared, write_prepared
from pipeline.data.reading import MAX_PROBLEMS_SHOWN
from pipeline.data.splits import Dataset, load_dataset
from pipeline.data.texts import MAX_CELL_CHARACTERS, clean, encode, normalise
from pipeline.settings.data import DataSettings

ROOT = Path(__file__).resolve().parents[1]
TASK = tasks.load("single_label", {})
WORDS = re.findall(
    r"\w+",
    "amber birch cedar delta ember fjord grove heron inlet joker karma lemon mango nylon ocean piano quilt raven "
    "sugar tiger umbra vivid walnut xenon yacht zebra",
)


def sentence(seed: int) -> str:
    """Three rare words and a number: no two sentences are near duplicates."""
    return " ".join([*random.Random(seed).sample(WORDS, 3), str(seed * 7919)])


def table(split: str, rows: int = 20, labels: tuple[str, ...] = ("no", "yes")) -> list[tuple[str, str]]:
    start = {"train": 0, "dev": 1_000, "test": 2_000}[split]
    return [(sentence(start + i), labels[i % len(labels)]) for i in range(rows)]


def write_csv(path: Path, rows: list[tuple], header: tuple | None = ("text", "label"), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([header, *rows] if header else rows)


def write_default(root: Path, **replaced: list[tuple]) -> Path:
    """train.csv and test.csv, or what replaces them."""
    for split in ("train", "test"):
        write_csv(root / f"{split}.csv", replaced.get(split, table(split)))
    return root


def read(root: Path, *, seed: int = 0, max_share: float = 0.05, **files) -> Dataset:
    """load_dataset with a section of data.files."""
    columns = {key: files.pop(key) for key in ("text", "pair", "label") if key in files}
    outer = {key: files.pop(key) for key in ("empty_text", "dev_fraction") if key in files}
    values = {
        "source": "files",
        "files": {"root": str(root), "columns": columns, **files},
        "near_duplicates": {"similarity": 0.95, "max_share": max_share},
        **outer,
    }
    return load_dataset(DataSettings.model_validate(values), TASK, Path(), seed)


def refusals(root: Path, **options) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return str(caught.value).splitlines()


def rows_of(dataset: Dataset, split: str) -> list[tuple[str, str]]:
    return [(row.text, row.target) for row in dataset.splits[split]]


# --- formats -------------------------------------------------------------------------------------------------------


def write_as(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".csv":
        write_csv(path, rows)
    elif path.suffix == ".tsv":
        write_csv(path, rows, delimiter="\t")
    elif path.suffix == ".jsonl":
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        path.write_text("\n".join(lines) + "\n\n", "utf-8")
    else:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    """Order, text and labels, commas, tabs, quotes, line ends and other scripts included."""
    train = table("train")
    train[0] = ('say "hi", then\tstop', "yes")
    train[1] = ("two\nlines", "no")
    train[2] = ("привет 世界 café", "yes")
    for split, rows in (("train", train), ("dev", table("dev", 6)), ("test", table("test"))):
        write_as(tmp_path / f"{split}.{ending}", rows)
    found = read(tmp_path, train=f"train.{ending}", dev=f"dev.{ending}", test=f"test.{ending}")
    assert rows_of(found, "train") == train
    assert rows_of(found, "dev") == table("dev", 6)
    assert rows_of(found, "test") == table("test")
    assert found.task.space.names == ("no", "yes")
    assert found.findings["rows"] == {"train": 20, "dev": 6, "test": 20}


def test_files_without_a_header_take_column_numbers(tmp_path):
    """As SST-2's are: no header, and quotes that quote nothing."""
    for split in ("train", "test"):
        rows = [(f'{text} " odd', label) for text, label in table(split)]
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (tmp_path / f"{split}.tsv").write_text(lines, "utf-8")
    options = {"train": "train.tsv", "test": "test.tsv", "header": False, "text": 0, "label": 1}
    found = read(tmp_path, **options, quoting=False)
    assert rows_of(found, "test")[0] == (f'{sentence(2_000)} " odd', "no")
    (tmp_path / "train.tsv").write_text('"open quote\t1\nb\t2\n', "utf-8")
    assert "train.tsv:2: not valid TSV: unexpected end of data" in refusals(tmp_path, **options)[0]


def test_a_column_called_pair_makes_rows_pairs(tmp_path):
    """Read, kept and tokenized as two texts; a row is empty when either is, and twice when both are the same."""
    for split in ("train", "test"):
        rows = [(text, f"other {text}", label) for text, label in table(split)]
        write_csv(tmp_path / f"{split}.csv", rows, ("first", "second", "label"))
    found = read(tmp_path, text="first", pair="second")
    assert found.splits["test"][0].texts == (sentence(2_000), f"other {sentence(2_000)}")
    write_prepared(found, tmp_path)
    assert read_prepared(tmp_path, "test").texts[0] == found.splits["test"][0].texts
    half = [(text, "", label) for text, label in table("test")]
    write_csv(tmp_path / "test.csv", half, ("first", "second", "label"))
    assert "empty text" in refusals(tmp_path, text="first", pair="second")[0]


def test_a_column_that_the_task_has_not_is_named(tmp_path):
    """With the nearest one that it has."""
    write_default(tmp_path)
    values = {"source": "files", "files": {"root": str(tmp_path), "columns": {"labels": "label"}}}
    with pytest.raises(DataError, match=r"'labels', which the task 'single_label' has not; did you mean 'label'\?"):
        load_dataset(DataSettings.model_validate(values), TASK, Path(), 0)


def test_a_byte_order_mark_crlf_and_blank_lines_change_nothing(tmp_path):
    """Excel writes the first two; the mark would otherwise hide the first column."""
    write_default(tmp_path)
    plain = read(tmp_path)
    for split in ("train", "test"):
        path = tmp_path / f"{split}.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n\n").replace(b"\n", b"\r\n"))
    with_mark = read(tmp_path)
    assert all(rows_of(plain, split) == rows_of(with_mark, split) for split in ("train", "dev", "test"))


def test_labels_are_names_in_numeric_then_alphabetic_order(tmp_path):
    """1.0 is 1, as Parquet writes integers with gaps; blanks around a label are none of it."""
    labels = ("10", "9", " 2.5", "b ", "a")
    write_default(tmp_path, train=table("train", 50, labels), test=table("test", 50, labels))
    assert read(tmp_path).task.space.names == ("9", "10", "2.5", "a", "b")
    numbers = {"text": [sentence(i) for i in range(20)], "label": [float(i % 2) for i in range(20)]}
    pyarrow.parquet.write_table(pyarrow.table(numbers), tmp_path / "train.parquet")
    write_csv(tmp_path / "test.csv", table("test", labels=("0", "1")))
    assert read(tmp_path, train="train.parquet").task.space.names == ("0", "1")


def test_odd_digits_are_names_and_equal_numbers_keep_one_order(tmp_path):
    """'²' is a digit that is no number, and '1' and '01' would swap places from one hash seed to the next."""
    labels = ("²", "01", "1", "٣", "9" * 5000)
    write_default(tmp_path, train=table("train", 50, labels), test=table("test", 50, labels))
    assert read(tmp_path).task.space.names == ("01", "1", "9" * 5000, "²", "٣")


def test_paths_of_any_kind_work(tmp_path):
    """Spaces, other scripts and a long name."""
    root = write_default(tmp_path / "with space" / "дані" / ("long" * 50))
    assert read(root).findings["rows"]["test"] == 20


def test_files_of_one_name_in_two_folders_are_no_duplicates(tmp_path):
    """Rows without an id are numbered by split, not by the file's name."""
    write_csv(tmp_path / "train" / "data.csv", table("train"))
    write_csv(tmp_path / "test" / "data.csv", table("test"))
    found = read(tmp_path, train="train/data.csv", test="test/data.csv")
    assert found.splits["test"][0].id == "test-2"
    assert found.splits["test"][0].where.endswith("test/data.csv:2")


# --- faults, each with its line ------------------------------------------------------------------------------------


def test_several_problems_are_listed_at_once_with_their_lines(tmp_path):
    """In both files, of several kinds; nobody should have to run it once for each."""
    train, test = table("train"), table("test")
    train[3] = (train[3][0], "")
    train[5] = (train[5][0], "yes", "more")
    train[7] = ("x" * (MAX_CELL_CHARACTERS + 1), "yes")
    test[2] = ("nul \0 inside", "no")
    test[4] = ("short",)
    write_default(tmp_path, train=train, test=test)
    found = refusals(tmp_path)
    assert len(found) == 5
    for line, message in zip(
        found,
        [
            r"train.csv:5: no label in column 'label'",
            r"train.csv:7: 3 cells, expected 2 \(an unquoted delimiter",
            r"train.csv:9: a text of 100,001 characters, expected at most 100,000",
            r"test.csv:4: the text holds a NUL character",
            r"test.csv:6: 1 cells, expected 2",
        ],
        strict=True,
    ):
        assert re.search(message, line)


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    """A wrong delimiter makes every row a problem."""
    write_default(tmp_path, train=[(text, label, "x") for text, label in table("train", 40)])
    found = refusals(tmp_path)
    assert len(found) == MAX_PROBLEMS_SHOWN + 1
    assert found[-1] == "... and 28 more"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text": "utterance"},
            r"train.csv:1: no column 'utterance'; found columns 'text', 'label'; set data.files.columns.text",
        ),
        ({"text": 0}, r"no column 0; found columns 'text', 'label'.*header: false when the first row is data"),
        ({"header": False}, r"no column 'text', 'label'; found columns 0, 1"),
        ({"id": "key"}, r"train.csv:1: no column 'key'"),
        (
            {"slice": "style"},
            r"train.csv:1: no column 'style'; found columns 'text', 'label'; set data.files.slice \(",
        ),
        ({"train": "nothing.csv"}, r"nothing.csv: no such file; check data.files in params.yaml"),
        ({"train": "train.xlsx"}, r"train.xlsx: unknown ending '.xlsx', expected one of .csv, .jsonl, .parquet, .tsv"),
        ({"train": "bad.parquet"}, r"bad.parquet: not a readable Parquet file: "),
        ({"train": "empty.csv"}, r"empty.csv: no rows; expected at least one example"),
        ({"train": "header.csv"}, r"header.csv: no rows"),
        ({"train": "twice.csv"}, r"twice.csv:1: more than one column 'text'; rename the others"),
        ({"train": "huge.csv"}, r"huge.csv:2: not valid CSV: field larger than field limit"),
        ({"train": "quote.csv"}, r"quote.csv:3: not valid CSV: "),
        ({"train": "utf16.csv"}, r"utf16.csv:1: a byte that is not UTF-8; save the file as UTF-8"),
        ({"train": "list.jsonl"}, r"list.jsonl:1: found list, expected a JSON object"),
        ({"train": "cut.jsonl"}, r"cut.jsonl:2: not JSON, expected one object a line"),
        ({"train": "deep.jsonl"}, r"deep.jsonl:1: not JSON"),
        ({"train": "keys.jsonl"}, r"keys.jsonl:2: no column 'label'; found columns 'text'"),
        ({"train": "types.jsonl"}, r"types.jsonl:1: found a list as text, expected text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(tmp_path, options, message):
    """One message for each file, the line where there is one."""
    write_default(tmp_path)
    contents = {
        "train.xlsx": b"PK",
        "bad.parquet": b"PAR1 nothing PAR1",
        "empty.csv": b"",
        "header.csv": b"text,label\n",
        "twice.csv": b"text,text,label\na,b,c\n",
        "huge.csv": b"text,label\n" + b"x" * 10_000_000 + b",yes\n",
        "quote.csv": b'text,label\n"a"b,yes\n"open,no\n'
        if options.get("train") != "quote.csv"
        else b'text,label\na,b\n"a"b,c\n',
        "utf16.csv": "text,label\n".encode("utf-16"),
        "list.jsonl": b'["a", "b"]\n',
        "cut.jsonl": b'{"text": "a", "label": "b"}\n{"text": "a", "la\n',
        "deep.jsonl": b"[" * 100_000 + b"\n",
        "keys.jsonl": b'{"text": "a", "label": "b"}\n{"text": "a"}\n',
        "types.jsonl": b'{"text": ["a"], "label": "b"}\n',
    }
    name = options.get("train")
    if name in contents:
        (tmp_path / name).write_bytes(contents[name])
    found = refusals(tmp_path, **options)
    assert re.search(message, found[0]), found


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_that_is_not_utf8_is_named_by_its_line(tmp_path, ending):
    """Far into the file, where the decoder counts from the start of its own buffer."""
    write_default(tmp_path)
    rows = [(sentence(i), "no" if i % 2 else "yes") for i in range(3_000)]
    path = tmp_path / f"train.{ending}"
    write_as(path, rows)
    lines = path.read_bytes().split(b"\n")
    lines[2_500] = lines[2_500].replace(b"yes", b"caf\xe9").replace(b"no", b"caf\xe9")
    path.write_bytes(b"\n".join(lines))
    found = refusals(tmp_path, train=path.name)
    assert found == [f"{path}:2501: a byte that is not UTF-8; save the file as UTF-8"]


def test_duplicate_and_missing_ids_are_refused(tmp_path):
    """An id names a row in the ledger, so two rows may not share one, not even in two splits."""
    header = ("id", "text", "label")
    rows = {
        split: [(f"{split[:2]}{i}", text, label) for i, (text, label) in enumerate(table(split))]
        for split in ("train", "test")
    }
    rows["train"][4] = ("tr0", *rows["train"][4][1:])
    rows["test"][0] = ("tr1", *rows["test"][0][1:])
    for split, values in rows.items():
        write_csv(tmp_path / f"{split}.csv", values, header)
    first, second = refusals(tmp_path, id="id")
    assert re.search(r"train.csv:6: id 'tr0' is also at .*train.csv:2; ids must differ", first)
    assert re.search(r"test.csv:2: id 'tr1' is also at .*train.csv:3", second)
    rows["train"][4] = ("", *rows["train"][4][1:])
    write_csv(tmp_path / "train.csv", rows["train"], header)
    assert "train.csv:6: no id in column 'id'" in refusals(tmp_path, id="id")[0]


def test_an_unknown_label_in_test_and_a_class_of_one_row_are_refused(tmp_path):
    """Each with what to do about it."""
    train, test = table("train"), table("test")
    train[0] = (train[0][0], "rare")
    test[7] = (test[7][0], "maybe")
    write_default(tmp_path, train=train, test=test)
    first, second = refusals(tmp_path)
    assert first == "class 'rare' has 1 row in train, expected at least 2; add rows or remove the class"
    assert re.search(r"test.csv:9: label 'maybe' is not in train; a model cannot learn it", second)


def test_one_class_only_is_refused(tmp_path):
    """Nothing can be learnt from it."""
    write_default(tmp_path, train=table("train", labels=("no",)), test=table("test", labels=("no",)))
    assert refusals(tmp_path) == ["train has 1 class(es), expected at least 2; check the label column"]


def test_empty_texts_are_refused_or_dropped_and_counted(tmp_path):
    """Blanks are no text; the policy is the user's, silence is not an option."""
    train = [*table("train"), ("", "yes"), ("  \t ", "no")]
    write_default(tmp_path, train=train)
    found = refusals(tmp_path)
    assert len(found) == 2
    assert re.search(r"train.csv:22: empty text; fill it in, or set data.empty_text to drop", found[0])
    kept = read(tmp_path, empty_text="drop")
    assert kept.findings["empty_rows_dropped"] == 2
    assert kept.findings["rows"]["train"] + kept.findings["rows"]["dev"] == 20


def test_a_split_that_dropping_leaves_empty_is_refused(tmp_path):
    """Not a division by zero later."""
    write_default(tmp_path, test=[(" ", "yes"), ("", "no")])
    assert refusals(tmp_path, empty_text="drop") == ["test has no row with a text; expected at least one"]


# --- splits and leaks ----------------------------------------------------------------------------------------------


def test_a_cut_dev_is_stratified_seeded_and_disjoint(tmp_path):
    """Every class keeps its share; the same seed gives the same rows, another seed others."""
    labels = ("a", "a", "a", "b")
    write_default(tmp_path, train=table("train", 200, labels), test=table("test", 20, labels))
    first, again, other = (
        read(tmp_path, dev_fraction=0.2),
        read(tmp_path, dev_fraction=0.2),
        read(tmp_path, seed=1, dev_fraction=0.2),
    )
    assert first.splits == again.splits
    assert first.splits["dev"] != other.splits["dev"]
    assert [sum(row.target == label for row in first.splits["dev"]) for label in ("a", "b")] == [30, 10]
    texts = {split: {row.text for row in rows} for split, rows in first.splits.items()}
    assert not texts["train"] & texts["dev"]
    assert len(texts["train"] | texts["dev"]) == 200


def test_duplicates_within_train_stay_on_one_side_of_the_cut(tmp_path):
    """Else dev would hold rows that were trained on; case and punctuation make no new text."""
    rows = table("train", 60)
    write_default(tmp_path, train=[*rows, *((text.upper() + "!", label) for text, label in rows)])
    found = read(tmp_path, dev_fraction=0.3)
    sides = [{normalise(row.text) for row in found.splits[split]} for split in ("train", "dev")]
    assert not sides[0] & sides[1]
    assert found.findings["rows"]["train"] + found.findings["rows"]["dev"] == 120


def test_a_cut_that_loses_a_class_is_refused(tmp_path):
    """Two rows of a class with one text go to dev together."""
    train = [("same text", "a"), ("same text", "a"), ("other", "b"), ("another", "b")]
    write_default(tmp_path, train=train, test=table("test", labels=("a", "b")))
    messages = set()
    for seed in range(12):
        try:
            read(tmp_path, seed=seed, dev_fraction=0.4)
        except DataError as error:
            messages.add(str(error))
    assert messages == {
        f"cutting dev off train left no row of '{label}'; give a dev split or more rows" for label in ("a", "b")
    }
    write_default(
        tmp_path,
        train=[("same", "a"), ("same", "a"), ("Same", "b"), ("same.", "b")],
        test=table("test", labels=("a", "b")),
    )
    assert refusals(tmp_path) == [
        "train has one text only, so no dev split can be cut off it; give a dev split or more rows"
    ]


def test_rows_also_in_test_are_removed_and_counted(tmp_path):
    """From train and dev, whatever their case, accents' form and punctuation; test stays whole."""
    train, dev, test = table("train"), table("dev", 6), table("test")
    test[0] = ("Where is the café?", "yes")
    train += [("where is the cafe\u0301", "yes"), (f"{test[3][0]}!!", "no"), (dev[1][0].title(), "no")]
    dev += [(test[5][0], "no")]
    write_default(tmp_path, train=train, test=test)
    write_csv(tmp_path / "dev.csv", dev)
    found = read(tmp_path, dev="dev.csv")
    assert found.findings["rows_also_in_test_removed"] == {"train": 3, "dev": 1}
    assert rows_of(found, "train") == table("train")
    assert rows_of(found, "test") == test
    assert rows_of(found, "dev") == table("dev", 6)


def test_leaks_that_leave_a_class_or_a_split_empty_are_refused(tmp_path):
    """A class seen by _check_rows may be gone after the leaks are."""
    leaked = [("one and only", "c"), ("one and only", "c")]
    write_default(tmp_path, train=[*table("train"), *leaked], test=[*table("test"), ("one and only", "c")])
    assert re.search("every row of train with label 'c' is also in dev or test", refusals(tmp_path)[0])
    write_default(tmp_path, train=table("test"), test=table("test"))
    assert re.search("every row of train is also in another split", refusals(tmp_path)[0])
    write_default(tmp_path)
    write_csv(tmp_path / "dev.csv", table("test", 4))
    assert re.search("every row of dev is also in another split", refusals(tmp_path, dev="dev.csv")[0])


def test_near_duplicates_are_counted_and_refused_above_the_share(tmp_path):
    """A plural or a typing slip does not make a new example."""
    long = "please tell me when the last train to the northern harbour leaves on sunday evenings"
    train, test = [*table("train"), (long, "yes")], [*table("test", 19), (long.replace("train", "trains"), "yes")]
    write_default(tmp_path, train=train, test=test)
    found = read(tmp_path, max_share=0.05).findings["near_duplicates"]
    assert (found["test_rows"], found["share_of_test"], found["dev_rows"]) == (1, 0.05, 0)
    assert found["examples"] == [(test[-1][0], long)]
    (message,) = refusals(tmp_path, max_share=0.04)
    assert re.search(r"1 of 20 test rows \(5.0%\) have a near duplicate in train or dev.*at most 4.0% allowed", message)
    assert "raise data.near_duplicates.max_share knowingly" in message


def test_near_duplicates_of_dev_in_train_are_counted_and_refuse_nothing(tmp_path):
    """Dev chooses the checkpoint, so whoever reads the report must know; no reported figure comes from it."""
    long = "please tell me when the last train to the northern harbour leaves on sunday evenings"
    write_default(tmp_path, train=[*table("train"), (long, "yes")])
    write_csv(tmp_path / "dev.csv", [*table("dev", 3), (f"{long}s", "yes")])
    found = read(tmp_path, dev="dev.csv", max_share=0.0).findings["near_duplicates"]
    assert (found["test_rows"], found["dev_rows"], found["share_of_dev"]) == (0, 1, 0.25)
    assert found["dev_examples"] == [(f"{long}s", long)]


# --- odd text ------------------------------------------------------------------------------------------------------

ODD = ["😀👍🏽", "❤️", "שלום עולם", "مرحبا", "हिन्दी", "naïve café", "\u200b", "a\ud800b", "…", "ﬁ", "İ", "x" * 5_000]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_read_compared_and_kept(tmp_path, text):
    """Emoji only, right to left, accents, zero width, lone surrogates."""
    train = [*table("train"), (text, "yes"), (text, "yes")]
    for split, rows in (("train", train), ("dev", table("dev")), ("test", table("test"))):
        write_as(tmp_path / f"{split}.jsonl", rows)
    found = read(tmp_path, train="train.jsonl", dev="dev.jsonl", test="test.jsonl")
    assert rows_of(found, "train") == train
    write_prepared(found, tmp_path)
    assert read_prepared(tmp_path, "train").texts[-1] == (text,)
    assert normalise(text)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Wake me UP!", "wake  me up", True),
        ("café", "cafe\u0301", True),
        ("don't", "don t", True),
        ("😀", "😀 ", True),
        ("😀", "😂", False),
        ("❤️", "✌️", False),
        ("love ❤️", "love", True),
        ("दिन", "दीन", False),  # day, poor: they differ in a vowel sign only
        ("ที่", "ที", False),
        ("a_b", "a b", False),
        ("cafe", "café", False),
    ],
)
def test_normalise_tells_texts_apart_as_a_reader_does(one, other, equal):
    """Too coarse removes rows of train for nothing; too fine lets test rows into training."""
    assert (normalise(one) == normalise(other)) is equal


@pytest.mark.parametrize(
    ("text", "expected"), [("a\ud800b", "a?b"), ("a\0b", "ab"), ("😀 é", "😀 é"), ("", ""), ("\udcff", "?")]
)
def test_clean_gives_text_that_can_be_encoded(text, expected):
    """Lone surrogates come from a terminal's bytes or from JSON."""
    assert clean(text) == expected
    clean(text).encode("utf-8")


def wordpiece() -> PreTrainedTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "wake", "me", "cafe", "##s", "?"]
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def test_encode_cuts_and_never_gives_an_empty_row():
    """A text of no tokens keeps its special tokens; a long one is cut to the length with them inside."""
    texts = ["wake me", "", "\u200b", "\ud800", "Cafés", "wake " * 50]
    found = encode(wordpiece(), texts, 6)
    assert found == [[2, 4, 5, 3], [2, 3], [2, 3], [2, 8, 3], [2, 6, 7, 3], [2, 4, 4, 4, 4, 3]]
    assert encode(wordpiece(), [], 6) == []


def test_odd_text_encodes_alike_alone_and_in_a_batch():
    """What a neighbour holds must not matter."""
    tokenizer = wordpiece()
    assert encode(tokenizer, ODD, 32) == [encode(tokenizer, [text], 32)[0] for text in ODD]


def test_pad_fills_on_the_right_and_masks():
    """Worked by hand; a fixed length is taken when given."""
    found = pad([[5, 6, 7], [8]], pad_id=9)
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad([[5]], 0, length=4)["attention_mask"].tolist() == [[1, 0, 0, 0]]


def test_batches_by_length_hold_every_row_once_longest_first():
    """Ties keep file order, so that batches are the same every time."""
    assert [batch.tolist() for batch in batches_by_length([3, 9, 3, 1, 9], 2)] == [[1, 4], [0, 2], [3]]


@pytest.mark.parametrize("rows", [0, 5, 8, 400, 1003])
def test_the_sampler_sorts_pools_of_batches_and_shuffles_those(rows):
    """The same written with lists: the order is part of a training run, and a checkpoint goes on in it."""
    lengths, generator = [(7 * i) % 31 + 1 for i in range(rows)], torch.Generator().manual_seed(3 * 100_003 + 2)
    order, batches = torch.randperm(rows, generator=generator).tolist(), []
    for start in range(0, rows, 50 * 8):
        pool = sorted(order[start : start + 50 * 8], key=lambda row: -lengths[row])
        batches += [pool[i : i + 8] for i in range(0, len(pool), 8)]
    tail = [batches.pop()] if batches and len(batches[-1]) < 8 else []
    shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    sampler = LengthGroupedSampler(np.array(lengths, np.int64), 8, seed=3)
    sampler.set_epoch(2)
    assert list(sampler) == [row for batch in [*shuffled, *tail] for row in batch]


# --- prepared data -------------------------------------------------------------------------------------------------


def test_prepared_data_comes_back_as_it_was(tmp_path):
    """Ids, texts, class numbers and names; the same bytes every time."""
    found = read(write_default(tmp_path / "raw"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_prepared(found, tmp_path / name)
    for split, rows in found.splits.items():
        examples = read_prepared(tmp_path / "one", split)
        assert list(examples.ids) == [row.id for row in rows]
        assert list(examples.texts) == [row.texts for row in rows]
        assert (examples.texts[-1], examples.ids[:2]) == (rows[-1].texts, [row.id for row in rows[:2]])
        assert [found.task.space.names[number] for number in examples.numbers] == [row.target for row in rows]
        assert list(examples.groups) == [row.target for row in rows]
        assert len(examples) == len(rows)
        assert examples.take([1, 0]).ids == (rows[1].id, rows[0].id)
        assert (tmp_path / "one" / f"{split}.jsonl").read_bytes() == (tmp_path / "two" / f"{split}.jsonl").read_bytes()
    assert str(tmp_path) not in (tmp_path / "one" / "train.jsonl").read_text()


def test_a_slice_column_is_kept(tmp_path):
    """Through reading, writing and taking; a row without a value is of no slice, and is written without one."""
    names = ("hard", "", " easy ")
    for split in ("train", "test"):
        rows = [(*row, names[i % 3]) for i, row in enumerate(table(split))]
        write_csv(tmp_path / f"{split}.csv", rows, ("text", "label", "style"))
    write_prepared(read(tmp_path, slice="style"), tmp_path)
    examples = read_prepared(tmp_path, "test")
    assert examples.slices[:4] == ("hard", "", "easy", "hard")
    assert examples.take([2, 0]).slices == ("easy", "hard")
    assert '"slice"' not in (tmp_path / "test.jsonl").read_text().splitlines()[1]


def test_data_without_slices_has_none(tmp_path):
    """Also where the column is there and not asked for."""
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", [(*row, "hard") for row in table(split)], ("text", "label", "style"))
    write_prepared(read(tmp_path), tmp_path)
    examples = read_prepared(tmp_path, "test")
    assert examples.slices == examples.take([1]).slices == ()
    assert '"slice"' not in (tmp_path / "test.jsonl").read_text()


PREPARE = """
import sys
from pathlib import Path
from pipeline import tasks
from pipeline.data.examples import write_prepared
from pipeline.data.splits import load_dataset
from pipeline.settings.params import DataSettings

source = DataSettings.model_validate({"source": "files", "files": {"root": sys.argv[1]}})
write_prepared(load_dataset(source, tasks.load("single_label", {}), Path(), 3), Path())
"""


def test_the_prepared_bytes_do_not_depend_on_the_process(tmp_path):
    """Another hash seed, locale, time zone, umask and working folder."""
    labels = ("1", "01", "b", "a")
    raw = write_default(tmp_path / "raw", train=table("train", 40, labels), test=table("test", 8, labels))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    values = {"source": "files", "files": {"root": str(raw)}}
    write_prepared(load_dataset(DataSettings.model_validate(values), TASK, Path(), 3), here)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "UTC+9", "OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, "-c", PREPARE, str(raw)]
    subprocess.run(command, cwd=there, env=environment, check=True)
    names = sorted(file.name for file in here.iterdir())
    assert names == ["dev.jsonl", "space.json", "test.jsonl", "train.jsonl"]
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


# --- the hub -------------------------------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, tables: dict[str, datasets.Dataset], **settings_of_hub) -> Dataset:
    def load_split(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        assert (name, config, revision) == ("some/set", None, "abc")
        return tables[split]

    monkeypatch.setattr(datasets, "load_dataset", load_split)
    values = {"source": "hub", "hub": {"dataset": "some/set", "revision": "abc", **settings_of_hub}}
    return load_dataset(DataSettings.model_validate(values), TASK, Path(), 0)


def hub_table(split: str, labels: list | None = None) -> datasets.Dataset:
    rows = table(split)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    numbers = labels or [int(label == "yes") for _, label in rows]
    return datasets.Dataset.from_dict({"text": [text for text, _ in rows], "label": numbers}, features=features)


def test_a_hub_data_set_gives_class_names_of_its_class_labels(monkeypatch):
    """Names, not numbers, so that a file with the same rows gives the same data."""
    tables = {"train": hub_table("train"), "validation": hub_table("dev"), "test": hub_table("test")}
    found = hub(monkeypatch, tables, dev="validation")
    assert found.task.space.names == ("no", "yes")
    assert rows_of(found, "train") == table("train")
    assert found.splits["test"][3].where == "some/set test[3]"


def test_hub_rows_are_checked_like_those_of_files(monkeypatch):
    """A null text is empty, not 'None'; -1 is the hub's mark for a hidden label."""
    plain = datasets.Dataset.from_dict(
        {"text": [None, *(text for text, _ in table("train")[1:])], "label": [label for _, label in table("train")]}
    )
    with pytest.raises(DataError, match=r"some/set train\[0\]: empty text"):
        hub(monkeypatch, {"train": plain, "test": hub_table("test")})
    with pytest.raises(DataError, match=r"some/set test\[0\]: no label in column 'label'"):
        hub(monkeypatch, {"train": hub_table("train"), "test": hub_table("test", [-1] * 20)})
    with pytest.raises(DataError, match=r"no column \['topic'\]; found \['text', 'label'\]"):
        hub(monkeypatch, {"train": hub_table("train"), "test": hub_table("test")}, columns={"label": "topic"})
    with pytest.raises(DataError, match="split 'test' has no rows"):
        hub(monkeypatch, {"train": hub_table("train"), "test": hub_table("test").select([])})


@pytest.mark.parametrize(
    ("error", "words"),
    [(ConnectionError("no route\nto host"), "no route;"), (TimeoutError(), "TimeoutError;"), (KeyError("x"), "'x';")],
)
def test_a_hub_that_cannot_be_reached_is_one_message(monkeypatch, error, words):
    """With what to do; some errors have no text at all."""

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    values = {"source": "hub", "hub": {"dataset": "some/set"}}
    with pytest.raises(
        DataError, match=f"cannot load split 'train' of data set 'some/set' from the hub: {words} check"
    ):
        load_dataset(DataSettings.model_validate(values), TASK, Path(), 0)


# --- fuzzing -------------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CSV_PIECES = st.lists(
    st.sampled_from(
        ["text", "label", ",", "\n", "\r\n", '"', "\0", "a", "b", " ", "é", "\ufeff", "\ud800", "😀", "\t"]
    ),
    max_size=40,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))


@FUZZ
@given(content=st.binary(max_size=200) | CSV_PIECES.map(lambda rest: b"text,label\n" + rest))
@example(content=b"text,label\n\xff,a\n")
@example(content=b'text,label\n"' + b"a" * 3_000_000)
def test_arbitrary_csv_bytes_give_data_or_a_data_error(tmp_path, content):
    """Nothing else, and no hang."""
    write_default(tmp_path)
    (tmp_path / "train.csv").write_bytes(content)
    started = time.process_time()
    try:
        read(tmp_path, max_share=1.0)
    except DataError as error:
        assert str(error)
    assert time.process_time() - started < 2


@FUZZ
@given(rows=st.lists(st.tuples(st.text(max_size=12), st.sampled_from(["no", "yes", "²", "\ud800", " "])), max_size=12))
def test_arbitrary_texts_give_data_or_a_data_error(tmp_path, rows):
    """Valid files with arbitrary rows reach the checks behind the reader."""
    write_default(tmp_path)
    write_as(tmp_path / "train.jsonl", [*table("train", 4), *rows])
    try:
        found = read(tmp_path, train="train.jsonl", max_share=1.0, empty_text="drop")
    except DataError as error:
        assert str(error)
    else:
        assert {row.target for row in found.splits["train"]} == set(found.task.space.names)


def test_damaged_parquet_gives_data_or_a_data_error(tmp_path):
    """Bytes changed and cut at 60 places."""
    write_default(tmp_path)
    write_as(tmp_path / "train.parquet", table("train"))
    whole = (tmp_path / "train.parquet").read_bytes()
    refused = 0
    for seed in range(60):
        chance = random.Random(seed)
        place = chance.randrange(len(whole))
        damaged = whole[:place] if seed % 2 else whole[:place] + chance.randbytes(3) + whole[place + 3 :]
        (tmp_path / "train.parquet").write_bytes(damaged)
        try:
            read(tmp_path, train="train.parquet", max_share=1.0)
        except DataError:
            refused += 1
    assert refused >= 30
