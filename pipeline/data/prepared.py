"""The prepared data as the stages use it: verified, and as the token ids that each model reads.

Token ids are made once, with the splits: all stages read the same ones, and those that measure need no tokenizer for it
and none of the packages behind it.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError, IntegrityError
from pipeline.base.records import Card, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.alignment import ALIKE, CHARACTERS, TOKENS, Alignment, belongs, segments, spans_of, token_map
from pipeline.data.examples import SPLITS, UNLABELLED, Examples, read_prepared
from pipeline.data.texts import encode
from pipeline.data.token_rows import TokenRows, lengths_of, read_token_rows, write_token_rows
from pipeline.data.unlabelled import SPLIT as UNLABELLED_SPLIT
from pipeline.data.unlabelled import new_texts
from pipeline.settings.data import Unlabelled

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.splits import Dataset

BATCH = 10_000  # texts that are tokenised at once: their ids are Python lists until they are written
# In a trained model's folder, of the test rows in their order: every output, and the answers that follow from them.
TEST_OUTPUTS, TEST_ANSWERS = "test_outputs.safetensors", "test_answers.json"
TOKEN_POSITION = 1  # of a distillation token: right behind the class token
# Columns of the encoded splits: how each model reads a text, and to which segment each token belongs.
TEACHER, SECOND, STUDENT, BESIDE = "teacher", "second", "student", "teacher_beside_student"
OUR_SEGMENTS, THEIR_SEGMENTS = "student_segments", "teacher_segments"


@dataclass(frozen=True)
class EncodedSplit:
    """One split as token ids. `teacher_ids` are given only when the student reads a text otherwise than the teacher."""

    names: Sequence[str]  # example ids, for messages
    ids: Sequence[list[int]]
    targets: Sequence[Any]  # as the task numbers them
    pad_id: int
    teacher_ids: Sequence[list[int]] | None = None
    teacher_pad_id: int = 0
    teacher_outputs: "Mapping[str, Tensor] | None" = None  # output -> (rows, ...)
    second_ids: Sequence[list[int]] | None = None  # as a second teacher reads the rows
    second_pad_id: int = 0
    # The segments of student and teacher that each token belongs to, where their tokens do not belong together.
    segments: tuple[Sequence[list[int]], Sequence[list[int]]] | None = None
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
        for rows in (self.ids, self.teacher_ids, self.second_ids, *(self.segments or ())):
            found.update(b"none" if rows is None else b"rows")
            for part in TokenRows.of(rows or []).content():
                found.update(part)
        return found.hexdigest()

    def take(self, rows: Iterable[int]) -> "EncodedSplit":
        """Only these rows, in this order."""
        picked = list(rows)

        def some(whole: Sequence[list[int]]) -> TokenRows:
            return TokenRows.of(whole).take(picked)

        return replace(
            self,
            names=[self.names[i] for i in picked],
            ids=some(self.ids),
            targets=[self.targets[i] for i in picked],
            teacher_ids=None if self.teacher_ids is None else some(self.teacher_ids),
            teacher_outputs={name: found[picked] for name, found in self.teacher_outputs.items()}
            if self.teacher_outputs is not None
            else None,
            second_ids=None if self.second_ids is None else some(self.second_ids),
            segments=None if self.segments is None else (some(self.segments[0]), some(self.segments[1])),
        )

    def without(self, rows: Collection[int]) -> "EncodedSplit":
        """All rows but these."""
        left_out = set(rows)
        return self.take(i for i in range(len(self)) if i not in left_out) if rows else self

    def plus(self, other: "EncodedSplit") -> "EncodedSplit":
        """These rows, and behind them those of another split of the same data, without what the teacher says."""

        def both(ours: Sequence[list[int]] | None, theirs: Sequence[list[int]] | None) -> TokenRows | None:
            return None if ours is None or theirs is None else TokenRows.of(ours).plus(theirs)

        segments = None
        if self.segments is not None and other.segments is not None:
            ours, theirs = (both(a, b) for a, b in zip(self.segments, other.segments, strict=True))
            assert ours is not None and theirs is not None
            segments = ours, theirs
        return replace(
            self,
            names=[*self.names, *other.names],
            ids=TokenRows.of(self.ids).plus(other.ids),
            targets=[*self.targets, *other.targets],
            teacher_ids=both(self.teacher_ids, other.teacher_ids),
            teacher_outputs=None,
            second_ids=both(self.second_ids, other.second_ids),
            segments=segments,
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


def write_unlabelled(settings: Unlabelled, dataset: "Dataset", folder: Path, root: Path) -> int:
    """Writes `unlabelled.jsonl` where there is text without labels; gives how many texts there are.

    Raises:
        DataError: a file cannot be read, or the rows of this data are pairs, which no file of texts has.
    """
    rest = [row.text for row in dataset.rest] if settings.rest_of_train else []
    if not settings.files and not rest:
        return 0
    train = dataset.splits["train"]
    if len(train[0].texts) > 1:
        raise DataError(
            "data.unlabelled: a text without label is one text, but rows are pairs; name no files, and set "
            "rest_of_train to false"
        )
    held_out = (row.text for split in ("dev", "test") for row in dataset.splits[split])
    new = new_texts(
        [root / name for name in settings.files], rest, (r.text for r in train), held_out, "data.unlabelled.files"
    )
    count = 0
    path = folder / f"{UNLABELLED_SPLIT}.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for name, text in new:
            file.write(as_prepared(name, text))
            count += 1
    if not count:
        path.unlink()
    return count


def as_prepared(name: str, text: str) -> str:
    """A text without label as a line of a prepared split."""
    return json.dumps({"id": name, "texts": [text], "number": UNLABELLED}, ensure_ascii=True) + "\n"


def learned_splits(folder: Path) -> list[str]:
    """Splits that are learned from: train, and text without labels where there is some."""
    return ["train", *([UNLABELLED_SPLIT] if (folder / f"{UNLABELLED_SPLIT}.jsonl").is_file() else [])]


def write_encoded(
    folder: Path,
    student: "PreTrainedTokenizerBase",
    teacher: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    has_token: bool = False,
    second: "PreTrainedTokenizerBase | None" = None,
    splits: Sequence[str] = SPLITS,
    compared: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes `encoded/<split>.arrow` beside splits that were written as `pipeline.data.examples.write_prepared` does.

    Beside a student with a distillation token the teacher reads one token less, so that both read the same text.

    Args:
        folder: the prepared data; text without labels is encoded where there is some.
        student: its tokenizer.
        teacher: its tokenizer.
        max_length: tokens at most, special tokens included.
        has_token: whether the student's tokenizer sets a distillation token.
        second: the second teacher's tokenizer, if there is one.
        splits: those that are there besides text without labels.
        compared: those in which the two models are compared token by token; what is learned from, if empty.

    Returns:
        For the folder's card: what `read_encoded` needs besides the ids.
    """
    readers: dict[str, Reader] = {TEACHER: lambda texts: encode(teacher, texts, max_length)}
    if second is not None:
        readers[SECOND] = lambda texts: encode(second, texts, max_length)
    # The same pieces may be cut otherwise, by a tokenizer that keeps capital letters.
    if has_token or student.backend_tokenizer.to_str() != teacher.backend_tokenizer.to_str():
        readers[STUDENT] = lambda texts: encode(student, texts, max_length)
        readers[BESIDE] = lambda texts: encode(teacher, texts, max_length - has_token)
    (folder / "encoded").mkdir()
    splits = list(dict.fromkeys([*splits, *learned_splits(folder)]))
    texts = {split: read_prepared(folder, split).texts for split in splits}
    for split in splits:
        write_token_rows(_file(folder, split), list(readers), _encode(readers, texts[split]))
    parts = len(texts["train"][0])
    facts: dict[str, Any] = {
        "max_length": max_length,
        "has_token": has_token,
        # what is left of an empty text: the special tokens around it
        "delimiter_ids": {reader: list(dict.fromkeys(make([("",) * parts])[0])) for reader, make in readers.items()},
        "pad_ids": {
            name: int(tokenizer.pad_token_id)
            for name, tokenizer in ((STUDENT, student), (TEACHER, teacher), (SECOND, second))
            if tokenizer is not None
        },
        # between the texts of a pair, as each model reads them; None where a row is one text
        "separators": {
            name: int(tokenizer.sep_token_id) if parts > 1 else None
            for name, tokenizer in ((STUDENT, student), (TEACHER, teacher), (SECOND, second))
            if tokenizer is not None
        },
        "alignment": None,
    }
    if STUDENT in readers:
        both = {split: texts[split] for split in (compared or learned_splits(folder))}
        facts["alignment"] = _align(folder, both, student, teacher, max_length, has_token)
    return facts


Reader = Callable[[Sequence[tuple[str, ...]]], list[list[int]]]


def _align(
    folder: Path,
    texts: Mapping[str, Sequence[tuple[str, ...]]],
    student: "PreTrainedTokenizerBase",
    teacher: "PreTrainedTokenizerBase",
    max_length: int,
    has_token: bool,
) -> dict[str, Any]:
    """How the two models' tokens belong together in these splits; writes the segments where by characters."""
    mapped, apart, rows = token_map(student, teacher), dict[str, list[int]](), 0
    for split in texts:
        columns = read_token_rows(_file(folder, split))
        pairs = zip(columns[STUDENT], columns[BESIDE], strict=True)
        token_at = TOKEN_POSITION if has_token else None
        apart[split] = [i for i, (ours, theirs) in enumerate(pairs) if not belongs(ours, theirs, mapped, token_at)]
        rows += len(columns[STUDENT])
    if sum(map(len, apart.values())) <= (1 - ALIKE) * rows:
        return {"by": TOKENS, "apart": apart}
    for split in texts:
        write_token_rows(
            _file(folder, f"{split}-segments"),
            [OUR_SEGMENTS, THEIR_SEGMENTS],
            (
                {OUR_SEGMENTS: ours, THEIR_SEGMENTS: theirs}
                for ours, theirs in segments_of(texts[split], student, texts[split], teacher, max_length, has_token)
            ),
        )
    return {"by": CHARACTERS, "apart": {}}


def segments_of(
    texts: Sequence[tuple[str, ...]],
    student: "PreTrainedTokenizerBase",
    teacher_texts: Sequence[tuple[str, ...]],
    teacher: "PreTrainedTokenizerBase",
    max_length: int,
    has_token: bool,
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """The segments of student and teacher, some rows at a time; without a distillation token, as losses see a text."""
    for start in range(0, len(texts), BATCH):
        rows = slice(start, start + BATCH)
        ours = spans_of(student, texts[rows], max_length)
        theirs = spans_of(teacher, teacher_texts[rows], max_length - has_token)
        if has_token:
            ours = [[*row[:TOKEN_POSITION], *row[TOKEN_POSITION + 1 :]] for row in ours]
        pairs = [segments(a, b) for a, b in zip(ours, theirs, strict=True)]
        yield [a for a, _ in pairs], [b for _, b in pairs]


def student_lengths(folder: Path, split: str) -> NDArray[np.int64]:
    """Tokens in each row of a split that `write_encoded` has written, as the student reads it."""
    columns = read_token_rows(_file(folder, split))
    return columns.get(STUDENT, columns[TEACHER]).lengths


def read_encoded(
    workspace: Workspace, split: str, max_length: int, *, reader: str | None = None
) -> tuple[Examples, EncodedSplit]:
    """One split as examples and as token ids.

    Args:
        workspace: with the prepared data.
        split: its name.
        max_length: that of the settings, which the data must have been prepared for.
        reader: TEACHER or SECOND: as that teacher reads it by itself; None: as the student reads it, and the teacher
            beside it.

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
    return examples, encoded_split(workspace.data, split, facts, examples, reader)


def encoded_split(
    folder: Path, split: str, facts: Mapping[str, Any], examples: Examples, reader: str | None = None
) -> EncodedSplit:
    """A split that `write_encoded` has written, with the facts that it gave; `reader` as in `read_encoded`."""
    ids = read_token_rows(_file(folder, split))
    beside = reader is None and STUDENT in ids
    column = STUDENT if beside else reader or TEACHER
    segments_file = _file(folder, f"{split}-segments")
    rows = read_token_rows(segments_file) if beside and segments_file.is_file() else None
    return EncodedSplit(
        names=examples.ids,
        ids=ids[column],
        targets=examples.numbers,
        pad_id=facts["pad_ids"][column],
        teacher_ids=ids[BESIDE] if beside else None,
        teacher_pad_id=facts["pad_ids"][TEACHER] if beside else 0,
        has_token=beside and facts["has_token"],
        second_ids=ids.get(SECOND) if reader is None else None,
        second_pad_id=facts["pad_ids"].get(SECOND, 0),
        delimiter_ids=tuple(facts["delimiter_ids"][column]),
        segments=(rows[OUR_SEGMENTS], rows[THEIR_SEGMENTS]) if rows is not None else None,
    )


def alignment_of(facts: Mapping[str, Any]) -> Alignment:
    """How the tokens of student and teacher belong together, of what `write_encoded` gave."""
    found = facts["alignment"]
    return TOKENS if found is None else found["by"]


def rows_apart(facts: Mapping[str, Any], split: str) -> set[int]:
    """Rows of a split that the two models' tokenizers, which cut alike, cut otherwise."""
    found = facts["alignment"]
    return set() if found is None else set(found["apart"].get(split, ()))


def _encode(readers: Mapping[str, "Reader"], texts: Sequence[tuple[str, ...]]) -> Iterator[dict[str, list[list[int]]]]:
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        yield {reader: make(some) for reader, make in readers.items()}


def _file(folder: Path, split: str) -> Path:
    return folder / "encoded" / f"{split}.arrow"
