"""Token ids in Arrow files: read through a memory map they are what was tokenised, and they cost next to no memory."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from pipeline import tasks
from pipeline.data import token_rows
from pipeline.data.examples import read_prepared, write_prepared
from pipeline.data.prepared import EncodedSplit
from pipeline.data.reading import Row
from pipeline.data.splits import Dataset
from pipeline.data.token_rows import TokenRows, lengths_of, read_token_rows, write_token_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = [[5, 6, 7], [8], [], [9, 2**31 - 1], [1, 2, 3, 4], [0]]


def written(path: Path, cuts: tuple[int, ...]) -> dict[str, TokenRows]:
    """ROWS, and the same backwards, in batches that end at `cuts`."""
    edges = [0, *cuts, len(ROWS)]
    parts = [ROWS[start:end] for start, end in pairwise(edges)]
    write_token_rows(path, ["plain", "backwards"], ({"plain": p, "backwards": [r[::-1] for r in p]} for p in parts))
    return read_token_rows(path)


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 2, 5)])
def test_rows_come_back_as_lists(tmp_path, cuts):
    """By number, from the end, as a slice and one after the other, whatever batches they were written in."""
    found = written(tmp_path / "rows.arrow", cuts)
    rows = found["plain"]
    assert list(rows) == [rows[i] for i in range(len(rows))] == ROWS
    assert [rows[np.int64(i)] for i in range(-6, 0)] == ROWS
    assert (rows[1:5:2], rows[4:]) == (ROWS[1:5:2], ROWS[4:])
    assert rows.lengths.tolist() == lengths_of(ROWS).tolist() == [len(row) for row in ROWS]
    assert list(found["backwards"]) == [row[::-1] for row in ROWS]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            rows[outside]


def test_datasets_opens_the_file_too(tmp_path):
    """The project reads it without that import; other tools need not."""
    written(tmp_path / "rows.arrow", (2,))
    assert datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))["plain"][:] == ROWS


def test_rows_of_memory_and_of_a_file_are_joined_and_are_one_content(tmp_path):
    """A training run's key must not change with the size of the batches they were written in."""
    rows = written(tmp_path / "rows.arrow", (3,))["plain"]
    assert list(rows.plus([[3], [4, 4]])) == list(TokenRows.of(ROWS).plus([[3], [4, 4]])) == [*ROWS, [3], [4, 4]]
    contents = {b"".join(some.content()) for some in (rows, TokenRows.of(ROWS), TokenRows.of(ROWS[:2]).plus(ROWS[2:]))}
    assert len(contents) == 1


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 2, 5)])
@pytest.mark.parametrize("at_once", [2, 1_000_000])
def test_some_rows_are_taken_in_any_order(tmp_path, cuts, at_once, monkeypatch):
    """Several times too, from any parts, and as many at once as their ids can be counted."""
    monkeypatch.setattr(token_rows, "TAKEN", at_once)
    rows = written(tmp_path / "rows.arrow", cuts)["plain"]
    for picked in ([], [2], [5, 0, 3, 3, 2], list(range(6))):
        found = rows.take(picked)
        assert list(found) == [ROWS[i] for i in picked]
        assert b"".join(found.content()) == b"".join(TokenRows.of([ROWS[i] for i in picked]).content())
    with pytest.raises(IndexError):
        rows.take([6])
    split = EncodedSplit("abcdef", rows, range(6), pad_id=0, teacher_ids=TokenRows.of(ROWS).plus([]))
    without = split.without([1, 4])
    assert (without.names, list(without.ids), without.targets) == (
        list("acdf"),
        [ROWS[i] for i in (0, 2, 3, 5)],
        [0, 2, 3, 5],
    )
    assert without.teacher_ids is not None and list(without.teacher_ids) == list(without.ids)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [[1, 5], [2, 1, 6]]},  # the same tokens, cut at another place
        {"ids": [[1, 5, 2], [1, 7]]},
        {"targets": (0, 0)},
        {"teacher_ids": [[1, 5, 2], [1, 6]]},
    ],
)
def test_the_digest_of_a_split_tells_it_from_others(change):
    """Of tokens, of where rows end, of labels; not of the kind of sequence."""
    split = EncodedSplit(("a", "b"), [[1, 5, 2], [1, 6]], (0, 1), pad_id=0)
    assert replace(split, ids=TokenRows.of(split.ids)).digest == split.digest
    assert replace(split, **change).digest != split.digest


READ = """
import sys
from pathlib import Path
import pyarrow
from pipeline.data.token_rows import read_token_rows
rows = read_token_rows(Path("rows.arrow"))["plain"]
total = sum(len(rows[i]) for i in range(0, len(rows), 1_000))
assert (len(rows), total) == (200_000, 200 * 40)
print(pyarrow.total_allocated_bytes(), *sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""


def test_reading_takes_neither_memory_nor_heavy_packages(tmp_path):
    """Eight million tokens, of which Arrow holds none: what is read lies in the file, and the system may forget it."""
    batch = [[i] * 40 for i in range(20_000)]
    write_token_rows(tmp_path / "rows.arrow", ["plain"], ({"plain": batch} for _ in range(10)))
    command, environment = [sys.executable, "-c", READ], {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    held, *heavy = found.split()
    assert int(held) < 100_000
    assert heavy == []


LIGHT = """
import sys
from pathlib import Path
from pipeline.data.examples import read_prepared
from pipeline.data.texts import clean, encode, normalise
examples = read_prepared(Path(), "test")
print(len(examples), *sorted({"numpy", "pyarrow", "sklearn", "scipy", "torch", "transformers"} & set(sys.modules)))
"""


def test_prepared_examples_need_no_other_package(tmp_path):
    """The report reads the test rows, and starts in a tenth of a second."""
    rows = [Row("a", ("one\u2028two 日本",), "yes", ""), Row("b", ("x",), "no", "", "hard")]
    task = tasks.load("single_label", {}, tasks.Space(names=("no", "yes")))
    write_prepared(Dataset({"test": rows}, task, {}), tmp_path)
    environment = {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, env=environment, check=True, capture_output=True
    )
    assert found.stdout.split() == [b"2"]
    examples = read_prepared(tmp_path, "test")
    assert (list(examples.texts), examples.numbers, examples.slices) == (
        [("one\u2028two 日本",), ("x",)],
        (1, 0),
        ("", "hard"),
    )


def test_the_bytes_of_a_file_are_the_same_every_time(tmp_path):
    """The data folder's card holds their hash."""
    for name in ("one", "two"):
        written(tmp_path / name, (2, 4))
    assert len({hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("one", "two")}) == 1
