"""The prepared data as the stages use it: verified, and as the token ids that each model reads.

Token ids are made once, with the splits: all stages read the same ones, and those that measure need no tokenizer for it
and none of the packages behind it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import IntegrityError
from pipeline.base.records import Card, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPLITS, Examples, read_prepared
from pipeline.data.texts import encode
from pipeline.data.token_rows import TokenRows, lengths_of, read_token_rows, write_token_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BATCH = 10_000  # texts that are tokenised at once: their ids are Python lists until they are written
# In a trained model's folder, of the test rows in their order: every output, and the answers that follow from them.
TEST_OUTPUTS, TEST_ANSWERS = "test_outputs.safetensors", "test_answers.json"


@dataclass(frozen=True)
class EncodedSplit:
    """One split as token ids. `teacher_ids` are given only when the student's vocabulary is not the teacher's."""

    names: Sequence[str]  # example ids, for messages
    ids: Sequence[list[int]]
    targets: Sequence[Any]  # as the task numbers them
    pad_id: int
    teacher_ids: Sequence[list[int]] | None = None
    teacher_pad_id: int = 0
    teacher_outputs: "Mapping[str, Tensor] | None" = None  # output -> (rows, ...)
    has_token: bool = False  # whether `ids` have a distillation token, which `teacher_ids` never have
    delimiter_ids: tuple[int, ...] = ()  # what the student's tokenizer sets around a text: class, separator and so on

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of the student in each row."""
        return lengths_of(self.ids)

    @property
    def digest(self) -> str:
        """One hash of every row's tokens and target."""
        found = hashlib.sha256(json.dumps(list(self.targets)).encode())
        for rows in (self.ids, self.teacher_ids):
            found.update(b"none" if rows is None else b"rows")
            for part in TokenRows.of(rows or []).content():
                found.update(part)
        return found.hexdigest()

    def take(self, rows: Iterable[int]) -> "EncodedSplit":
        """Only these rows, in this order, without what the teacher says to them."""
        picked = list(rows)
        theirs = self.teacher_ids
        return replace(
            self,
            names=[self.names[i] for i in picked],
            ids=TokenRows.of([self.ids[i] for i in picked]),
            targets=[self.targets[i] for i in picked],
            teacher_ids=None if theirs is None else TokenRows.of([theirs[i] for i in picked]),
            teacher_outputs=None,
        )

    def spread(self, count: int) -> "EncodedSplit":
        """At most `count` rows, evenly spaced: a file may be sorted by class, and its first rows all be of one."""
        return self.take(spread_rows(len(self), count))

    @property
    def for_teacher(self) -> tuple[Sequence[list[int]], int]:
        """The rows as the teacher reads them, and its padding token."""
        return (self.ids, self.pad_id) if self.teacher_ids is None else (self.teacher_ids, self.teacher_pad_id)


def spread_rows(total: int, count: int) -> list[int]:
    """Row numbers spread evenly over a split: a file may be sorted by class, and its first rows all be of one."""
    return [i * total // count for i in range(count)] if count < total else list(range(total))


def open_data(workspace: Workspace) -> Card:
    """The card of the prepared data, after every file was checked against it."""
    return open_folder(workspace.data, "data")


def write_encoded(
    folder: Path,
    student: "PreTrainedTokenizerBase",
    teacher: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    has_token: bool,
) -> dict[str, Any]:
    """Writes `encoded/<split>.arrow` beside splits that `pipeline.data.examples.write_prepared` has written.

    Beside a student with a distillation token the teacher reads one token less, so that both read the same text.

    Args:
        folder: the prepared data.
        student: its tokenizer.
        teacher: its tokenizer.
        max_length: tokens at most, special tokens included.
        has_token: whether the student's tokenizer sets a distillation token.

    Returns:
        For the folder's card: what `read_encoded` needs besides the ids.
    """
    readers: dict[str, Callable[[Sequence[tuple[str, ...]]], list[list[int]]]] = {
        "teacher": lambda texts: encode(teacher, texts, max_length)
    }
    if has_token or student.get_vocab() != teacher.get_vocab():
        readers["student"] = lambda texts: encode(student, texts, max_length)
        readers["teacher_beside_student"] = lambda texts: encode(teacher, texts, max_length - has_token)
    (folder / "encoded").mkdir()
    parts = 1
    for split in SPLITS:
        texts = read_prepared(folder, split).texts
        parts = len(texts[0])
        write_token_rows(_file(folder, split), list(readers), _encode(readers, texts))
    return {
        "max_length": max_length,
        "has_token": has_token,
        # what is left of an empty text: the special tokens around it
        "delimiter_ids": {reader: list(dict.fromkeys(make([("",) * parts])[0])) for reader, make in readers.items()},
        "pad_ids": {"student": int(student.pad_token_id), "teacher": int(teacher.pad_token_id)},
        # between the texts of a pair, as the teacher reads them; None where a row is one text
        "separator": int(teacher.sep_token_id) if parts > 1 else None,
    }


def student_lengths(folder: Path, split: str) -> NDArray[np.int64]:
    """Tokens in each row of a split that `write_encoded` has written, as the student reads it."""
    columns = read_token_rows(_file(folder, split))
    return columns.get("student", columns["teacher"]).lengths


def read_encoded(
    workspace: Workspace, split: str, max_length: int, *, for_teacher: bool = False
) -> tuple[Examples, EncodedSplit]:
    """One split as examples and as token ids; for the teacher, in its own vocabulary only.

    Raises:
        IntegrityError: the data are damaged, or were prepared for another length.
    """
    facts = open_data(workspace).facts.get("encoding")
    if facts is None or facts["max_length"] != max_length:
        found = f"token ids cut to {facts['max_length']}" if facts else "no token ids"
        raise IntegrityError(
            f"{workspace.data}: found {found}, expected data.max_length {max_length}; run `dvc repro prepare`"
        )
    examples = read_prepared(workspace.data, split)
    ids = read_token_rows(_file(workspace.data, split))
    reader = "student" if "student" in ids and not for_teacher else "teacher"
    beside = reader == "student"
    return examples, EncodedSplit(
        names=examples.ids,
        ids=ids[reader],
        targets=examples.numbers,
        pad_id=facts["pad_ids"][reader],
        teacher_ids=ids["teacher_beside_student"] if beside else None,
        teacher_pad_id=facts["pad_ids"]["teacher"] if beside else 0,
        has_token=beside and facts["has_token"],
        delimiter_ids=tuple(facts["delimiter_ids"][reader]),
    )


def _encode(
    readers: dict[str, Callable[[Sequence[tuple[str, ...]]], list[list[int]]]], texts: Sequence[tuple[str, ...]]
) -> Iterator[dict[str, list[list[int]]]]:
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        yield {reader: make(some) for reader, make in readers.items()}


def _file(folder: Path, split: str) -> Path:
    return folder / "encoded" / f"{split}.arrow"
