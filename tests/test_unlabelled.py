"""Text without labels: files, few labels, and what is never learned from."""

import logging

import pytest

from pipeline import tasks
from pipeline.base.errors import DataError
from pipeline.data.reading import Row
from pipeline.data.texts import MAX_CELL_CHARACTERS
from pipeline.data.unlabelled import digest_of, keep_few, new_texts, read_texts

TASK = tasks.load("single_label", {})
ROWS = [Row(str(i), (f"text {i}",), "abc"[i % 3], f"train.csv:{i}") for i in range(60)]
SETTING = "data.unlabelled.files"


def test_text_is_taken_once_and_never_from_dev_test_or_train(tmp_path, caplog):
    """Compared without case and punctuation; the log says how many were left out, and why."""
    path = tmp_path / "more.txt"
    lines = [
        "\ufeffPaint it black",
        "",
        "  a held-out TEXT!! ",
        "paint it black.",
        "KNOWN text",
        "天气 怎么样",
        "of train",
    ]
    path.write_bytes("\r\n".join(lines).encode())
    with caplog.at_level(logging.INFO):
        made = list(new_texts([path], ["Of train"], ["known text"], ["A held out text"], SETTING))
    assert made == [
        ("rest of train-1", "Of train"),
        ("1:more.txt-1", "Paint it black"),
        ("1:more.txt-5", "天气 怎么样"),
    ]
    assert "more.txt gave 2 texts of 6; 1 are in dev or test and were left out, 3 were there already" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"more\.txt: no such file; check data\.unlabelled\.files"),
        (b"\n \n", r"more\.txt: no text in it; expected one a line"),
        (b"fine\nna\xefve\n", r"more\.txt:2: a byte that is not UTF-8; save the file as UTF-8"),
        (b"x" * (MAX_CELL_CHARACTERS + 1), r"more\.txt:1: a text of 100,001 characters, expected at most 100,000"),
    ],
)
def test_unusable_file_is_named_with_its_line(tmp_path, content, message):
    """And what to do."""
    path = tmp_path / "more.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_texts(path, SETTING))


def test_few_labels_are_few_of_each_class_and_nested():
    """The rest is everything else, both in file order; those of 3 are among those of 7; another seed draws others."""
    few, rest = keep_few(ROWS, TASK, 3, seed=0)
    assert [sum(row.target == name for row in few) for name in "abc"] == [3, 3, 3]
    assert sorted([*few, *rest], key=lambda row: int(row.id)) == ROWS
    assert [int(row.id) for row in few] == sorted(int(row.id) for row in few)
    more, _ = keep_few(ROWS, TASK, 7, seed=0)
    assert set(few) < set(more)
    assert keep_few(ROWS, TASK, 3, seed=1)[0] != few
    assert keep_few(ROWS, TASK, 100, seed=0) == (ROWS, [])


def test_order_of_the_file_draws_other_rows_but_other_classes_do_not():
    """What a class keeps depends on its own rows alone."""
    alone, _ = keep_few([row for row in ROWS if row.target == "a"], TASK, 3, seed=0)
    assert [row for row in keep_few(ROWS, TASK, 3, seed=0)[0] if row.target == "a"] == alone


def test_digest_is_that_of_the_normalised_text():
    """Letters and digits decide."""
    assert digest_of("Hello,  World!") == digest_of("hello world") != digest_of("hello worlds")
    assert len(digest_of("")) == 8
